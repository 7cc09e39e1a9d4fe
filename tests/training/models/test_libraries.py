"""Models of other libraries: the real ones where they are installed, the error where they are not."""

import importlib.util
import sys

import pytest
import torch

import startsparse as ss
from startsparse.training import models, options

HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("name", ["transformers:vit", "timm:resnet18"])
def test_a_missing_library_is_named(monkeypatch, name):
    library = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ModuleNotFoundError, match=f"the model {name} needs the package {library}: pip install"
    ):
        models.make(name)
    (line,) = options.problems("model", name, {})
    assert line.startswith(f"model: the model {name} needs")


def test_a_library_that_does_not_import_is_told_apart(monkeypatch, tmp_path):
    """As torchvision, which timm imports, beside another torch."""
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"timm:resnet18 needs timm, which does not import here: operator"):
        models.make("timm:resnet18")


@pytest.mark.parametrize("name", ["timm:", "transformers:"])
def test_a_name_is_needed(name):
    with pytest.raises(ValueError, match=f"{name} is followed by a name"):
        models.get(name)


@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="transformers is not installed: its models were not tried")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "shape", "classes", "layers"),
        [("vit", (3, 8, 8), 10, 8), ("llama", (6,), 11, 8)],
    )
    def test_it_fits_the_data(self, name, shape, classes, layers):
        config = SMALL | ({"patch_size": 4} if name == "vit" else {"num_key_value_heads": 2})
        model = models.make(f"transformers:{name}", config=config, input_shape=shape, classes=classes)
        text = len(shape) == 1
        outputs = model(torch.zeros(2, *shape, dtype=torch.long if text else torch.float32))
        assert outputs.shape == ((2, 6, classes) if text else (2, classes))
        sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(density=0.1))
        assert len(sparse.masks) == layers

    def test_conv1d_of_gpt2_is_a_linear_layer(self):
        config = {"n_embd": 8, "n_layer": 1, "n_head": 2}
        model = models.make("transformers:gpt2", config=config, input_shape=(6,), classes=5)
        sparse = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(density=0.1))
        assert sum(mask.numel() for mask in sparse.masks.values()) == 768

    @pytest.mark.parametrize(
        ("name", "given", "says"),
        [
            ("vitt", {}, "unknown model 'transformers:vitt': did you mean 'vit'"),
            ("bert", {}, "transformers:bert makes no image classification model"),
            ("vit", {"pretrained": True}, "pretrained needs a repository, owner/name"),
        ],
    )
    def test_what_cannot_be_had(self, name, given, says):
        with pytest.raises(ValueError, match=says):
            models.make(f"transformers:{name}", **given)

    def test_a_repository_without_network(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        with pytest.raises(
            ValueError, match=r"transformers:someone/net could not be had: .* where there is a network"
        ):
            models.make("transformers:someone/net")
