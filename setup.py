"""What `pyproject.toml` cannot say: which root modules are installed, and which root files the wheel carries."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# Beside the package a wheel has no repository root, so that `ncpl.resources` looks for these in `ncpl/root_files`.
ROOT_FILES = ("handler.py", "run_train.py", "recipes", "examples", "model_cards", "space")


class BuildWithRootFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "ncpl" / "root_files"
        target.mkdir(parents=True, exist_ok=True)
        for name in ROOT_FILES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, target / name)


setup(
    py_modules=["ncpl_cli", *sorted(path.stem for path in ROOT.glob("*_n[cs]p*.py"))],
    cmdclass={"build_py": BuildWithRootFiles},
)
