"""The folder of a checkpoint: a local one, or the download of a repository on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from ..trust import check_links

WEIGHTS = (".safetensors", ".safetensors.index.json")
PICKLES = (".bin", ".bin.index.json", ".pt")
OTHERS = (".json", ".txt", ".jinja", ".tiktoken", ".model", ".bpe")


def locate(source: str | Path) -> Path:
    """Returns a local folder unchanged, or downloads a repository from the Hub.

    Of a repository, only files of the top folder are downloaded: safetensors, or pickles where there are none.

    Args:
        source: a folder or a Hub id.

    Raises:
        FileNotFoundError: `source` is neither a folder nor a repository.
        ValueError: a file of the folder is a link to a file outside of it.
    """
    if Path(source).is_dir():
        check_links(Path(source))
        return Path(source)
    if Path(source).exists():
        raise FileNotFoundError(f"{source} is a file: expected the folder that contains it")
    try:
        files = [name for name in HfApi().list_repo_files(str(source)) if "/" not in name]
    except HFValidationError:
        raise FileNotFoundError(f"{source} is not a folder") from None
    except OfflineModeIsEnabled:
        return Path(snapshot_download(str(source), local_files_only=True))
    weights = [name for name in files if name.endswith(WEIGHTS)] or [name for name in files if name.endswith(PICKLES)]
    others = [name for name in files if name.endswith(OTHERS) and not name.endswith(WEIGHTS + PICKLES)]
    return Path(snapshot_download(str(source), allow_patterns=weights + others))
