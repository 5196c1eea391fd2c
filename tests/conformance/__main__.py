"""Fetches transformers' common tests at the installed version: `python -m tests.conformance`.

They are part of the source distribution, which pip downloads by its name. Of the folder `tests/` it holds the common
files alone; what these import from the rest of the repository is for models other than ours and is put in its place
here as empty classes.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

from tests.conformance import PACKAGE

# File of the repository that the distribution leaves out -> what the common tests need of it.
LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "distributed_testing_utils.py": "",
    # Fields that every configuration has, with values other than the defaults.
    "utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "output_attentions": True,\n'
        '    "dtype": "float16", "chunk_size_feed_forward": 5, "architectures": ["BertModel"],\n'
        '    "id2label": {0: "label"}, "label2id": {"label": "0"}, "problem_type": "regression"}\n'
    ),
    # Imported from a path beside the tests; images and sounds are for other processors.
    "../utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch() -> None:
    requirement = f"transformers=={transformers.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", folder, requirement], check=True)
        with tarfile.open(next(Path(folder).glob("transformers-*.tar.gz"))) as archive:
            names = [member for member in archive.getnames() if "/tests/test_" in member and member.endswith(".py")]
            if not any(name.endswith("/test_modeling_common.py") for name in names):
                raise SystemExit(f"{requirement}: its source distribution holds no tests/test_modeling_common.py")
            PACKAGE.mkdir(parents=True, exist_ok=True)
            for name in names:
                content = archive.extractfile(name)
                assert content is not None
                (PACKAGE / Path(name).name).write_bytes(content.read())
    for name, text in LEFT_OUT.items():
        path = PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for folder in (PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())):
        (folder / "__init__.py").touch()
    print(f"{len(names)} test files of {requirement} in {PACKAGE}")


if __name__ == "__main__":
    fetch()
