import subprocess
import sys
from pathlib import Path

CODE = """
import sys
for name in ("pydantic", "yaml", "rich", "pyarrow", "PIL", "sklearn"):
    sys.modules[name] = None
import startsparse
from startsparse.training import checkpoint, data, loop, models, optim
try:
    from startsparse.training import recipe
except ModuleNotFoundError as error:
    print(error)
from startsparse.cli.main import main
print(main(["train", "x.yaml"]))
"""


def test_only_a_recipe_needs_the_extra():
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source)},
    )
    needs = "a recipe needs the package pydantic: pip install 'startsparse[train]'"
    assert done.stdout.splitlines() == [needs, "2"], done.stderr
    assert done.stderr.strip() == f"startsparse: error: {needs}"
