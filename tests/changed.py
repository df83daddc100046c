"""Print the test files of what has changed since the last commit: those of its rooms, and those of all."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALWAYS = {"tests/cells", "tests/networks", "tests/measures", "tests/test_every_message.py"}
ALONE = {"diffmem/randomness.py": "tests/test_randomness.py", "diffmem/atomic.py": "tests/test_atomic.py"}
"""The tests of modules that are in no room."""


def main() -> None:
    """Print paths for pytest, in one line."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [line[3:].split(" -> ")[-1] for line in result.stdout.splitlines()]
    rooms = {f"tests/{path.split('/')[1]}" for path in paths if path.startswith("diffmem/") and path.count("/") > 1}
    tests = {path for path in paths if path.startswith("tests/") and Path(path).name.startswith("test_")}
    alone = {ALONE[path] for path in paths if path in ALONE}
    print(*sorted(path for path in {*ALWAYS, *rooms, *tests, *alone} if (ROOT / path).exists()))


if __name__ == "__main__":
    main()
