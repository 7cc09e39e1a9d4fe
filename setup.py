"""What pyproject.toml cannot say: the kernels are compiled as the package is built, where there is a compiler.

The library has a plain C interface, so the wheel depends on the platform alone, not on Python or torch. Without a
compiler the wheel is pure, and the kernels are compiled at first use where one is then, or torch computes. An editable
installation compiles at first use as well: its sources change.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = "startsparse/kernels"


def compiler() -> ModuleType:
    """The package's own build module, past the package, which needs torch."""
    path = Path(__file__).parent / "src" / KERNELS / "build.py"
    spec = importlib.util.spec_from_file_location("startsparse_kernels_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Python files, then the library beside them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder, build = Path(self.build_lib) / KERNELS, compiler()
        for path in build.libraries(folder):  # of an earlier build
            path.unlink()
        try:
            self.announce(f"compiled {build.build_into(folder)}", level=2)
        except (build.CompileError, OSError) as error:
            self.warn(f"the sparse kernels are not compiled now, but at first use: {error}")


class PlatformWheel(bdist_wheel):
    """py3-none-<platform> with a library, py3-none-any without."""

    def get_tag(self):
        folder = Path(self.get_finalized_command("build_py").build_lib) / KERNELS
        platform = super().get_tag()[2] if compiler().libraries(folder) else "any"
        return "py3", "none", platform


class Binary(Distribution):
    """Installed where a platform's own files go."""

    def has_ext_modules(self):
        return True


setup(distclass=Binary, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
