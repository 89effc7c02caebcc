"""Compiles the C++ kernels while evenflow is installed; all else about it is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

NATIVE = Path("evenflow/execution/kernels/native")


class BuildWithKernels(build_py):
    """Puts the compiled kernels beside the sources they are made of, if there is a compiler."""

    def run(self) -> None:
        """Build the package, then the kernels; without them they are compiled on first use."""
        super().run()
        build = runpy.run_path(str("src" / NATIVE / "build.py"))
        folder = (Path("src") if self.editable_mode else Path(self.build_lib)) / NATIVE
        for outdated in folder.glob("kernels-*.so"):
            outdated.unlink()
        try:
            build["compile_library"](folder / build["library_name"]())
        except (build["CompileError"], OSError) as error:
            self.warn(f"no compiled kernels in this package: {error}")


class WheelForAnyPython(bdist_wheel):
    """A wheel for this platform and any Python: the library knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags in the wheel's name: Python, ABI, platform."""
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Goes where packages for one platform go."""

    def has_ext_modules(self) -> bool:
        """Return that there is machine code."""
        return True


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForAnyPython},
    distclass=BinaryDistribution,
)
