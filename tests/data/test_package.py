import subprocess
import sys


def test_import_does_not_load_optional_packages():
    script = (
        "import sys; from hf_gpt.data import TokenBlocks; "
        "print([name for name in ('datasets', 'pyarrow', 'tiktoken') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
