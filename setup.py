"""What the build does that pyproject.toml cannot declare; all that is known of the package stands there."""

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    """Builds from nothing: what was deleted since an earlier build would be packed otherwise."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    cmdclass={"build_py": FreshBuild},
    script_name="setup.py",  # by its name it is told from the modules beside it, which pip hides
)
