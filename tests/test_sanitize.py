"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer: built anew, then the tests of the backends on top.

Minutes of work, so only where FASTSURF_SANITIZE is set: `FASTSURF_SANITIZE=1 pytest tests/test_sanitize.py`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = """
import sys, pytest
from fastsurf.backends import native
native.LIBRARY = sys.argv[1]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "avx2 or portable or native", *sys.argv[2:]]))
"""


def runtime(name: str) -> str:
    """The compiler's own copy of a sanitizer."""
    compiler = os.environ.get("CXX", "c++")
    return subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not os.environ.get("FASTSURF_SANITIZE"), reason="set FASTSURF_SANITIZE=1 for this")
def test_the_backend_tests_under_sanitizers(tmp_path):
    if not shutil.which("cmake") or not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("no cmake or no compiler")
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if not all(Path(library).is_file() for library in libraries):
        pytest.skip("the compiler has no sanitizers")
    subprocess.run(["cmake", "-S", HERE.parent, "-B", tmp_path, "-DFASTSURF_SANITIZE=ON"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", tmp_path, "--parallel"], check=True, stdout=subprocess.DEVNULL)
    settings = {
        "LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": f"{HERE.parent}:{HERE}",
    }  # fmt: skip
    tests = [str(HERE / name) for name in ("test_backends.py", "test_fused.py", "test_mesh.py")]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "_fastsurf_native"), *tests],
        env=os.environ | settings, cwd=HERE.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
