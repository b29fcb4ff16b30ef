/* Interposes on the file operations of a process, also those of native libraries, by LD_PRELOAD.
 *
 * interpose(prefix, log, mode, at): operations on paths below `prefix` are counted and appended to `log`.
 *   'c'  only that
 *   's'  the process stops (SIGSTOP) before each, and in the middle of each write
 *   'f'  each that needs space fails with ENOSPC, from operation `at` on
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[PATH_MAX], log_path[PATH_MAX];
static char mode;
static long at, count;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t write_really(int fd, const void *data, size_t size) { REAL(write); return real(fd, data, size); }

void interpose(const char *new_prefix, const char *new_log, char new_mode, long new_at) {
  strncpy(prefix, new_prefix, sizeof prefix - 1);
  strncpy(log_path, new_log, sizeof log_path - 1);
  mode = new_mode, at = new_at, count = 0;
}

static void append_to_log(const char *name, const char *path) {
  static int (*open_really)(const char *, int, ...);
  if (!open_really) open_really = dlsym(RTLD_NEXT, "open");
  char line[PATH_MAX + 64];
  int fd = open_really(log_path, O_CREAT | O_WRONLY | O_APPEND, 0644);
  write_really(fd, line, snprintf(line, sizeof line, "%s %s\n", name, path));
  close(fd);
}

/* Returns 1 if the operation fails. */
static int begin(const char *name, const char *path, int needs_space) {
  count++;
  append_to_log(name, path);
  if (mode == 's') raise(SIGSTOP);
  if (mode == 'f' && needs_space && count >= at) { errno = ENOSPC; return 1; }
  return 0;
}

static int is_below(const char *path) { return prefix[0] && path && !strncmp(path, prefix, strlen(prefix)); }

static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = prefix[0] ? readlink(link, path, PATH_MAX - 1) : 0;
  path[length > 0 ? length : 0] = 0;
  return is_below(path);
}

static int is_at(int folder, const char *name, char *path) { /* of functions with a file descriptor of the folder */
  if (name[0] == '/' || folder == AT_FDCWD) { snprintf(path, PATH_MAX, "%s", name); return is_below(path); }
  if (!path_of(folder, path)) return 0;
  snprintf(path + strlen(path), PATH_MAX - strlen(path), "/%s", name);
  return 1;
}

#define OPEN_MODE mode_t m = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); m = va_arg(a, mode_t); va_end(a); }
#define BEGIN_OPEN(path) if ((flags & (O_CREAT | O_TRUNC)) && is_below(path) && begin("open", path, 1)) return -1;
int open(const char *path, int flags, ...) { OPEN_MODE BEGIN_OPEN(path) REAL(open); return real(path, flags, m); }
int open64(const char *path, int flags, ...) { OPEN_MODE BEGIN_OPEN(path) REAL(open64); return real(path, flags, m); }
int openat(int d, const char *name, int flags, ...) { OPEN_MODE char path[PATH_MAX]; is_at(d, name, path); BEGIN_OPEN(path) REAL(openat); return real(d, name, flags, m); }
int openat64(int d, const char *name, int flags, ...) { OPEN_MODE char path[PATH_MAX]; is_at(d, name, path); BEGIN_OPEN(path) REAL(openat64); return real(d, name, flags, m); }
FILE *fopen(const char *path, const char *how) { REAL(fopen); if (how[0] != 'r' && is_below(path) && begin("open", path, 1)) return 0; return real(path, how); }
FILE *fopen64(const char *path, const char *how) { REAL(fopen64); if (how[0] != 'r' && is_below(path) && begin("open", path, 1)) return 0; return real(path, how); }

ssize_t write(int fd, const void *data, size_t size) {
  char path[PATH_MAX];
  if (!path_of(fd, path)) return write_really(fd, data, size);
  if (begin("write", path, 1)) return -1;
  if (mode != 's' || size < 2) return write_really(fd, data, size);
  ssize_t half = write_really(fd, data, size / 2);
  if (half <= 0) return half;
  begin("half write", path, 1);
  ssize_t rest = write_really(fd, (const char *)data + half, size - half);
  return half + (rest > 0 ? rest : 0);
}

#define BEGIN_FD(name, fd, needs_space) char path[PATH_MAX]; if (path_of(fd, path) && begin(name, path, needs_space)) return -1
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { REAL(pwrite64); BEGIN_FD("pwrite", fd, 1); return real(fd, data, size, offset); }
ssize_t writev(int fd, const struct iovec *vector, int length) { REAL(writev); BEGIN_FD("writev", fd, 1); return real(fd, vector, length); }
ssize_t sendfile(int out, int in, off_t *offset, size_t size) { static ssize_t (*real)(int, int, off_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile"); BEGIN_FD("sendfile", out, 1); return real(out, in, offset, size); }
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) { static ssize_t (*real)(int, int, off64_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile64"); BEGIN_FD("sendfile", out, 1); return real(out, in, offset, size); }
ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t size, unsigned flags) { REAL(copy_file_range); BEGIN_FD("copy_file_range", out, 1); return real(in, a, out, b, size, flags); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); BEGIN_FD("ftruncate", fd, 1); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); BEGIN_FD("ftruncate", fd, 1); return real(fd, size); }
int fsync(int fd) { REAL(fsync); BEGIN_FD("fsync", fd, 1); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); BEGIN_FD("fdatasync", fd, 1); return real(fd); }

#define BEGIN_PATH(name, path, needs_space) if (is_below(path) && begin(name, path, needs_space)) return -1
#define BEGIN_AT(name, folder, file, needs_space) char path[PATH_MAX]; if (is_at(folder, file, path) && begin(name, path, needs_space)) return -1
int truncate(const char *path, off_t size) { REAL(truncate); BEGIN_PATH("truncate", path, 0); return real(path, size); }
int truncate64(const char *path, off64_t size) { REAL(truncate64); BEGIN_PATH("truncate", path, 0); return real(path, size); }
int rename(const char *old, const char *new) { REAL(rename); BEGIN_PATH("rename", old, 0); return real(old, new); }
int renameat(int a, const char *old, int b, const char *new) { REAL(renameat); BEGIN_AT("rename", a, old, 0); return real(a, old, b, new); }
int unlink(const char *path) { REAL(unlink); BEGIN_PATH("unlink", path, 0); return real(path); }
int unlinkat(int folder, const char *name, int flags) { REAL(unlinkat); BEGIN_AT("unlink", folder, name, 0); return real(folder, name, flags); }
int rmdir(const char *path) { REAL(rmdir); BEGIN_PATH("rmdir", path, 0); return real(path); }
int mkdir(const char *path, mode_t m) { REAL(mkdir); BEGIN_PATH("mkdir", path, 1); return real(path, m); }
int mkdirat(int folder, const char *name, mode_t m) { REAL(mkdirat); BEGIN_AT("mkdir", folder, name, 1); return real(folder, name, m); }
