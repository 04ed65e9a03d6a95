import pytest
from scored_rows import write_lines

from rmexp.data.overlap import overlaps
from rmexp.errors import DataError
from rmexp.schema import Example, Message

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def example(id, prompt, chosen, rejected):
    return Example(id, "s", (Message("user", prompt),), (chosen,), (rejected,))


def test_texts_without_case_and_punctuation(tmp_path):
    rows = [
        {"prompt": "What IS 2+2?", "chosen": [{"role": "assistant", "content": " Four! "}]},
        {"other": {"deep": ["nothing"]}, "n": 3},
    ]
    path = write_lines(tmp_path / "train.jsonl", rows)
    first, second = overlaps(
        [example("1", "what is 2 2", "four", "five"), example("2", "Why?", "No", "")], [str(path)]
    )
    assert (first.prompt, first.responses, first.grams) == (True, 0.5, None)
    assert first.any
    assert (second.prompt, second.responses, second.any) == (False, 0.0, False)


def test_the_share_of_13_grams(tmp_path):
    """Fourteen words have two 13-grams. Of four in all (two each) the training set holds one."""
    other = LONG.replace("one", "uno").replace("fourteen", "catorce")
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x " + LONG.removesuffix(" fourteen")}])
    (found,) = overlaps([example("1", LONG, other, "short")], [str(path)])
    assert (found.prompt, found.responses, found.grams) == (False, 0.0, 1 / 4)
    assert not found.any
    write_lines(path, [{"text": f"x {LONG} y"}])
    (found,) = overlaps([example("1", LONG, other, "short")], [str(path)])
    assert found.grams == 2 / 4
    assert found.any
    # A folder, and several of them, are read whole.
    write_lines(tmp_path / "b.jsonl", [{"text": other}])
    (found,) = overlaps([example("1", LONG, other, "short")], [str(tmp_path)])
    assert (found.responses, found.grams) == (0.5, 1.0)
    with pytest.raises(DataError, match="does not exist"):
        overlaps([example("1", LONG, other, "short")], [str(tmp_path / "nowhere")])
