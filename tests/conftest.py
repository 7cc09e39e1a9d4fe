"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Nets this small only lose by a second thread, the more so beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def decided():
    """Kernels and autograd node are those of the user's cache, also where a test has a cache of its own."""
    from startsparse.kernels import has_node

    _ = has_node()


@pytest.fixture
def native():
    """The test is about the compiled kernels."""
    from startsparse.kernels import library

    if library.backend().name != "native":
        pytest.skip("no compiler on this machine")
