"""The notebook of examples/explore_run runs cell by cell, as a kernel would run it; no jupyter is needed."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "explore_run" / "explore_run.ipynb"


def run_cells(notebook):
    """Value of the last expression of every code cell, in one namespace."""
    namespace, values = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), namespace)
        values.append(eval(compile(last, "cell", "eval"), namespace) if last else None)
    return namespace, values


def test_every_cell_runs(run_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTION_RUN", run_copy.uri)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    namespace, values = run_cells(notebook)
    assert all(value is not None for value in values)
    assert values[2]["count"].sum() == len(namespace["clips"]) == 12
    assert values[4]["low_motion"] == 6
    assert "<video" in values[6]._repr_html_()
    assert values[7][0] == 4
    assert (tmp_path / "verdicts.csv").read_text().startswith("clip_id,verdict,reason,by")
