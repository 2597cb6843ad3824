"""Build of dydiff_dist and of its CPU kernels.

The C++ extension takes raw pointers and sizes and is not linked against torch, so one build serves every torch version.
It is optional: without a compiler the install goes on, says so, and the kernels run their torch reference instead.
Metadata stands here rather than in pyproject.toml, next to the mappings of ``kernels/`` to ``dydiff_kernels`` (the bare
name ``kernels`` belongs to another package that diffusers and transformers import) and ``tools/`` to ``dydiff_tools``.
"""

import runpy
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).parent
SOURCES_SHA256 = runpy.run_path(str(ROOT / "kernels" / "sources.py"))["sources_sha256"](ROOT / "kernels")


class OptionalBuildExt(build_ext):
    """Builds the CPU kernels, or says in one line why it did not and what that means."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:  # any compiler failure must leave an installable package
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.warn(
                f"the C++ kernels were not built ({reason}). dydiff_dist works without them, through the slower torch "
                "reference; to get them, install a C++17 compiler (Debian: apt-get install g++) and reinstall."
            )


cpu_extension = Pybind11Extension(
    "dydiff_kernels._cpu",
    sources=sorted(glob("kernels/csrc/*.cpp")),
    depends=sorted(glob("kernels/*/*.h")),  # what all ops share is in csrc, the rest in the op's own folder
    include_dirs=["kernels", "kernels/csrc"],
    define_macros=[("DYDIFF_SOURCES", f'"{SOURCES_SHA256}"')],
    cxx_std=17,
    extra_compile_args=[
        *("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # GCC 12 warns about its own AVX-512 header
    ],
    extra_link_args=["-fopenmp"],
    optional=True,  # an editable install copies the result to kernels/ only if there is one
)

kernel_packages = ["dydiff_kernels", *(f"dydiff_kernels.{name}" for name in find_packages("kernels"))]

setup(
    name="dydiff_dist",
    version="0.2.0",
    description="Distributed training of Dynamical Diffusion forecasters for video and physical fields",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["dydiff_dist", "dydiff_dist.*"]), *kernel_packages, "dydiff_tools"],
    package_dir={"dydiff_kernels": "kernels", "dydiff_tools": "tools"},
    entry_points={"console_scripts": ["dydiff = dydiff_tools.dydiff:main"]},
    package_data={"dydiff_dist": ["demo/*/*"], "dydiff_dist.evaluation": ["report_page/*"]},
    ext_modules=[cpu_extension],
    cmdclass={"build_ext": OptionalBuildExt},
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19.8,<0.20",  # engine/deepspeed/ touches private names: a new minor version is a new check
        "triton>=3.6; platform_system == 'Linux'",
        "webdataset>=1.0.2,<2",
        "tensorboard",
        "protobuf",  # which tensorboard brings
        "einops",
        "numpy>=2",
        "pydantic>=2",
        "safetensors",
        "h5py",
        "av",
        "pillow",
        "matplotlib",
        "scipy>=1.11",
        "scoringrules",
        "torchmetrics",
        "tqdm",
        "psutil",
        "packaging",
    ],
    extras_require={
        "gpu": ["xformers>=0.0.35"],
        "zarr": ["zarr>=3"],
        "s3": ["s3fs"],
        "cluster": ["distributed"],
        "nowcast": ["pysteps>=1.20", "opencv-python-headless"],  # the optical-flow baseline; pysteps builds from source
        "latents": ["diffusers>=0.42,<1"],
        "weather": ["xarray", "h5netcdf", "zarr>=3"],
        "lerobot": ["pyarrow"],
        "hub": ["huggingface_hub"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow"],
        "dev": [
            *("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"),
            *("ninja", "scikit-image", "pybind11>=3.0", "setuptools>=77"),
            *("moto[s3]", "flask", "flask-cors"),  # the S3 server of the tests
            *("wandb", "mlflow-skinny"),  # loggers, offline
            *("mkdocs-material", "mkdocstrings[python]"),
            *("nbclient", "ipykernel"),  # the notebook of the docs
        ],
    },
)
