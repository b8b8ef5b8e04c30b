"""The example of the README runs as it stands, with fewer samples and into a temporary folder."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_example_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"tests/test_readme.py.*?```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    code = code.replace('out, count = "OUT", 64', f"out, count = {str(tmp_path / 'out')!r}, 2")
    exec(compile(code, str(README), "exec"), {})
    assert len(list((tmp_path / "out" / "images").glob("*.nii.gz"))) == 2
    assert capsys.readouterr().out
