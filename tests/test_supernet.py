"""The contract of every space and its builder: supernet and extracted module answer the same."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nas.errors import LayoutError, SpaceError
from nas.experiment import Experiment, settings_of
from nas.layout import Layout
from nas.skeleton import skeleton_of
from nas.space import Space, oneof, repeat
from nas.supernet import Supernet
from nas.tasks import digits
from search_spaces import hierarchical


class Task:
    classes, image_shape = 10, (1, 8, 8)


# --- a plain pre-norm ViT that knows nothing of nas ------------------------------------------------


@dataclass(frozen=True)
class ViTBlock:
    heads: int
    hidden: int


@dataclass(frozen=True)
class ViT:
    blocks: tuple[ViTBlock, ...]
    width: int = 32


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * 8)
        self.out = nn.Linear(heads * 8, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, -1)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainViT(nn.Module):
    def __init__(self, width: int, blocks: list[tuple[int, int]]) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.register_buffer("scale", torch.arange(1.0, 17.0)[:, None] / 16, persistent=False)
        self.blocks = nn.ModuleList(PlainBlock(width, *b) for b in blocks)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def build_vit(architecture: ViT) -> nn.Module:
    return PlainViT(architecture.width, [(b.heads, b.hidden) for b in architecture.blocks])


def vit_layouts(architecture: ViT) -> dict[str, Layout]:
    layouts = {}
    for i, block in enumerate(architecture.blocks):
        layouts[f"blocks.{i}.qkv.weight"] = Layout((3, block.heads, 8, architecture.width))
        layouts[f"blocks.{i}.qkv.bias"] = Layout((3, block.heads, 8))
    return layouts


VIT_SPACE = Space(ViT(repeat(ViTBlock(oneof(1, 2, 4), oneof(32, 64)), 1, 3)))


# --- one with batch norm --------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvNet:
    width: int


@dataclass(frozen=True)
class Width:
    width: int


def build_batch_norm(architecture: ConvNet) -> nn.Module:
    width = architecture.width
    conv, norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def images(n: int = 8) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def randomised(supernet: Supernet) -> Supernet:
    """Biases, norms and tables away from 0 and 1, so that a wrong slice of them shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return supernet


@pytest.fixture(scope="module")
def supernets() -> dict[str, Supernet]:
    own = hierarchical.space(Task)
    return {
        "hierarchical": randomised(Supernet(hierarchical.build, own)),
        "plain vit": randomised(Supernet(build_vit, VIT_SPACE, layouts=vit_layouts)),
    }


@pytest.mark.parametrize(("name", "n"), [("hierarchical", 200), ("plain vit", 100)])
def test_extraction_difference_is_zero(supernets, name, n):
    supernet = supernets[name]
    rng = np.random.default_rng(0)
    bits = set()
    for _ in range(n):
        architecture = supernet.space.sample(rng)
        module = supernet.extract(architecture)
        assert not any(type(m).__module__.startswith("nas.supernet") for m in module.modules())
        with torch.inference_mode():
            assert torch.equal(module(images()), supernet(architecture, images()))
        bits |= {of.weight for of in supernet.parameter_bits(architecture).values()}
    assert bits == ({4, 8, 32} if name == "hierarchical" else {32})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("bits", [4, 8, 32])
def test_extraction_difference_is_zero_where_a_map_does_not_lie_in_one_piece(bits, mode):
    """PyTorch folds such a map for a product or not, by whether the weights require gradients."""

    class Permuted(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, width, 4, 4), nn.Linear(width, width)

        def forward(self, x_B1HW):
            return self.linear(self.conv(x_B1HW).permute(0, 2, 3, 1))

    supernet = Supernet(
        lambda width: Permuted(int(width)), Space(oneof(8, 16)), bits=lambda architecture, name: bits
    )
    for width in (8, 16):
        module = supernet.extract(width)
        for seed in range(20):
            x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            with mode():
                assert torch.equal(module(x), supernet(width, x))


@pytest.mark.parametrize("name", ["hierarchical", "plain vit"])
def test_all_that_is_sampled_is_in_the_bank(supernets, name):
    supernet = supernets[name]
    rng = np.random.default_rng(1)
    for _ in range(200):
        supernet.weights(supernet.space.sample(rng))


def test_fused_qkv_of_a_smaller_vit_holds_heads_of_all_three(supernets):
    supernet = supernets["plain vit"]
    weights = supernet.weights(ViT((ViTBlock(2, 32),)))
    fused = supernet.bank["blocks.0.qkv.weight"]  # 3, heads, 8, width
    assert torch.equal(weights["blocks.0.qkv.weight"], fused[:, :2].reshape(48, 32))


def test_bits_change_the_answer_and_the_bytes(supernets):
    supernet = supernets["hierarchical"]
    space = supernet.space
    largest = space.largest()
    few = hierarchical.space(Task, bits=(4,)).largest()
    assert not torch.equal(supernet(largest, images()), supernet(few, images()))
    torch.testing.assert_close(
        supernet(largest, images()), supernet(few, images(), quantized=False), rtol=0, atol=0
    )
    plain = 4 * sum(p.numel() for p in supernet.extract(largest).parameters())
    assert supernet.size_bytes(largest) == plain == 4 * supernet.parameters_of(largest)
    assert supernet.size_bytes(few) < 0.3 * plain


def test_bits_stay_on_their_own_part(supernets):
    supernet = supernets["hierarchical"]
    space = supernet.space
    genes = space.encode(space.largest())
    names = [g.name for g in space.genes]
    genes[names.index("stages.1.blocks.0.mixer.bits.weight")] = 0
    bits = supernet.parameter_bits(space.decode(genes))
    few = {name for name, of in bits.items() if of.weight == 4}
    assert few == {f"stages.1.blocks.0.mixer.{p}.weight" for p in "qkvo"}


def test_gradients_reach_exactly_the_slice(supernets):
    supernet = supernets["plain vit"]
    small = ViT((ViTBlock(1, 32),))
    for parameter in supernet.parameters():
        parameter.grad = None
    supernet(small, images(), train=True).sum().backward()
    up = supernet.bank["blocks.0.up.weight"].grad
    assert up[:32].abs().sum() > 0
    assert not up[32:].any()
    assert supernet.bank["blocks.1.up.weight"].grad is None


def test_gradients_equal_those_of_the_plain_module(supernets):
    supernet = supernets["hierarchical"]
    architecture = supernet.space.sample(np.random.default_rng(3))
    for parameter in supernet.parameters():
        parameter.grad = None
    supernet(architecture, images(), train=True, quantized=False).square().sum().backward()
    module = supernet.extract(architecture, quantized=False).train()
    module(images()).square().sum().backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    name = "stages.0.blocks.0.mixer.q.weight"
    rows, width = grads[name].shape
    stored = supernet.bank[name].grad[: rows // 8, :, :width].reshape(rows, width)
    torch.testing.assert_close(stored, grads[name])


def test_initial_weights_follow_the_seed():
    space = hierarchical.space(Task)
    a, b, c = (Supernet(hierarchical.build, space, seed=s).state() for s in (0, 0, 1))
    name = "stages.0.blocks.0.ffn.up.weight"
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])
    assert torch.equal(a["head.norm.weight"], torch.ones(64))


def test_architecture_outside_the_bank_is_named(supernets):
    with pytest.raises(LayoutError, match=r"`blocks.0.qkv.weight` must fit the bank: .*\(3, 6, 8, 32\)"):
        supernets["plain vit"].weights(ViT((ViTBlock(6, 32),)))
    with pytest.raises(LayoutError, match=r"`blocks.3.norm1.weight` must be in the bank"):
        supernets["plain vit"].weights(ViT((ViTBlock(1, 32),) * 4))


class TestWhatABuilderAndItsLayoutsMayNotBe:
    def misspelled(self, architecture):
        return {name.replace("qkv", "qvk"): layout for name, layout in vit_layouts(architecture).items()}

    def of_another_size(self, architecture):
        return {"head.weight": Layout((7, 1000))}

    @pytest.mark.parametrize(
        ("layouts", "message"),
        [
            (misspelled, r"`blocks\.0\.qvk\.\w+` is in none of them\. Is it `blocks\.0\.qkv\.\w+`\?"),
            (
                of_another_size,
                r"layout of `head\.weight` must hold as many numbers as it: .*\(10, 32\), .*7, 1000",
            ),
            (lambda self, a: [], r"`layouts` must return a Layout by parameter name: got \[\]"),
            (lambda self, a: {"head.weight": (10, 32)}, "`layouts` must return a Layout by parameter name"),
        ],
    )
    def test_layouts(self, layouts, message):
        with pytest.raises(LayoutError, match=message):
            Supernet(build_vit, VIT_SPACE, layouts=partial(layouts, self))

    def test_a_layout_under_the_other_name_of_a_tied_weight_counts(self):
        def build(a: Width) -> nn.Module:
            module = nn.Module()
            module.a, module.b = nn.Linear(a.width, 6), nn.Linear(a.width, 6)
            module.b.weight = module.a.weight
            return module

        supernet = Supernet(
            build, Space(Width(oneof(4, 8))), layouts=lambda a: {"b.weight": Layout((2, 3, a.width))}
        )
        assert supernet.stored["a.weight"] == Layout((2, 3, 8))

    def test_no_module(self):
        with pytest.raises(LayoutError, match="`build` must return a module: got NoneType for Width"):
            Supernet(lambda a: None, Space(Width(oneof(4, 8))))

    def test_lazy_modules(self):
        with pytest.raises(LayoutError, match="`weight` is of a lazy module"):
            Supernet(lambda a: nn.LazyLinear(a.width), Space(Width(oneof(4, 8))))

    def test_buffers_that_are_made_of_weights(self):
        class Scaled(nn.Linear):
            def __init__(self, width: int) -> None:
                super().__init__(3, width)
                self.register_buffer("scale", 2 * torch.ones_like(self.bias))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) * self.scale

        supernet = Supernet(lambda a: Scaled(a.width), Space(Width(oneof(4, 8))))
        assert set(supernet.bank) == {"bias", "weight"}
        x = torch.ones(2, 3)
        with torch.no_grad():
            answer = 2 * nn.functional.linear(x, supernet.bank["weight"][:4], supernet.bank["bias"][:4])
            torch.testing.assert_close(supernet(Width(4), x), answer)

    @pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
    def test_spectral_norms(self, norm):
        """Their vectors would be those of other weights."""

        def build(a: Width) -> nn.Module:
            return nn.Sequential(norm(nn.Linear(3, a.width)), nn.ReLU())

        with pytest.raises(LayoutError, match=r"`0` has a spectral norm, whose vectors"):
            Supernet(build, Space(Width(oneof(4, 8))))

    @pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
    def test_parameters_of_no_floats(self, kind):
        def build(a: Width) -> nn.Module:
            module = nn.Linear(3, a.width)
            module.count = nn.Parameter(torch.zeros(2, dtype=kind), requires_grad=False)
            return module

        with pytest.raises(LayoutError, match=rf"`count` is of {kind}\. Make it a buffer"):
            Supernet(build, Space(Width(oneof(4, 8))))


def test_state_round_trip(supernets):
    supernet = supernets["plain vit"]
    other = Supernet(build_vit, VIT_SPACE, layouts=vit_layouts, seed=5).with_state(supernet.state())
    architecture = VIT_SPACE.largest()
    assert torch.equal(supernet(architecture, images()), other(architecture, images()))
    with pytest.raises(LayoutError, match="another space or builder"):
        supernet.with_state({n: t[:1] for n, t in supernet.state().items()})


class TestWithWeights:
    def test_is_extract_reversed(self, supernets):
        """The slice is the module's, the rest of the bank stays, and gradients reach it."""
        for name, supernet in supernets.items():
            architecture = supernet.space.smallest()
            module = supernet.build(architecture).eval()
            loaded = supernet.with_weights(module, architecture)
            with torch.inference_mode():
                assert torch.equal(loaded(architecture, images(), quantized=False), module(images())), name
            again = loaded.with_weights(supernet.extract(architecture, quantized=False), architecture)
            for parameter, tensor in again.state().items():
                assert torch.equal(tensor, supernet.bank[parameter]), parameter
            assert all(p.requires_grad for p in loaded.parameters())

    def test_statistics_in_buffers_are_passed_by(self):
        supernet = Supernet(build_batch_norm, Space(ConvNet(oneof(8, 16))))
        supernet.with_weights(build_batch_norm(ConvNet(8)).state_dict(), ConvNet(8))

    def test_an_experiment_starts_from_it(self, supernets):
        supernet, task = supernets["plain vit"], digits()
        module = supernet.extract(VIT_SPACE.largest())
        experiment = Experiment(
            "started",
            task,
            VIT_SPACE,
            build_vit,
            layouts=vit_layouts,
            start=lambda new: new.with_weights(module, VIT_SPACE.largest()),
        )
        assert json.dumps(settings_of(experiment))
        with torch.inference_mode():
            assert torch.equal(experiment.supernet()(VIT_SPACE.largest(), images()), module(images()))


def test_pickles_with_numpy_weights(supernets):
    supernet = supernets["plain vit"]
    again = pickle.loads(pickle.dumps(supernet))
    architecture = VIT_SPACE.largest()
    assert torch.equal(supernet(architecture, images()), again(architecture, images()))
    assert all(isinstance(a, np.ndarray) for a in supernet.__getstate__()["bank"].values())


def test_what_was_built_without_gradients_gives_them(supernets):
    supernet, architecture = supernets["plain vit"], VIT_SPACE.largest()
    skeleton_of.cache_clear()
    with torch.inference_mode():
        answer = supernet(architecture, images())
    again = supernet(architecture, images())
    again.sum().backward()
    assert torch.equal(answer, again.detach())


class TestBuffers:
    space = Space(ConvNet(oneof(8, 16)))

    def test_calibration_gathers_the_statistics_of_the_slice(self):
        supernet = randomised(Supernet(build_batch_norm, self.space))
        batches = [images(32) * 3 + 1, images(32) - 2]
        buffers = supernet.calibrate(ConvNet(8), batches)
        module = supernet.extract(ConvNet(8))
        outputs = [module[0](b) for b in batches]
        mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
        torch.testing.assert_close(buffers["1.running_mean"], mean)
        assert not torch.allclose(buffers["1.running_var"], torch.ones(8))

    def test_evaluation_and_extraction_use_the_same(self):
        supernet = randomised(Supernet(build_batch_norm, self.space))
        buffers = supernet.calibrate(ConvNet(16), [images(32) * 3 + 1])
        module = supernet.extract(ConvNet(16), buffers=buffers)
        with torch.inference_mode():
            answer = supernet(ConvNet(16), images(), buffers=buffers)
            assert torch.equal(module(images()), answer)
            assert not torch.allclose(supernet(ConvNet(16), images()), answer)

    def test_calibration_leaves_no_trace(self):
        supernet = Supernet(build_batch_norm, self.space)
        before = supernet(ConvNet(8), images())
        supernet.calibrate(ConvNet(8), [images(32) * 3 + 1])
        assert torch.equal(before, supernet(ConvNet(8), images()))

    def test_training_leaves_no_trace(self):
        supernet = Supernet(build_batch_norm, self.space)
        given = supernet.calibrate(ConvNet(8), [images(32)])
        before, kept = supernet(ConvNet(8), images()), copy.deepcopy(given)
        supernet(ConvNet(8), images(32) * 3 + 1, train=True)
        supernet(ConvNet(8), images(32) * 3 + 1, train=True, buffers=given)
        assert torch.equal(before, supernet(ConvNet(8), images()))
        assert all(torch.equal(kept[name], given[name]) for name in kept)

    def test_batches_of_several_inputs(self):
        supernet = Supernet(build_batch_norm, self.space)
        once = supernet.calibrate(ConvNet(8), [images(32)])
        again = supernet.calibrate(ConvNet(8), [(images(32),)])
        assert all(torch.equal(once[name], again[name]) for name in once)

    def test_without_running_statistics_there_is_nothing_to_gather(self, supernets):
        assert supernets["plain vit"].calibrate(VIT_SPACE.largest(), [images()]) == {}


def test_extracted_modules_share_nothing_with_the_bank(supernets):
    supernet = supernets["plain vit"]
    module = supernet.extract(VIT_SPACE.largest())
    before = copy.deepcopy(supernet.state())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert all(torch.equal(before[n], t) for n, t in supernet.state().items())


def test_unknown_mixer_is_refused():
    with pytest.raises(SpaceError, match=r"`mixer` of Block must be a Mixer: got Mlp"):
        hierarchical.Block(hierarchical.Mlp(1), hierarchical.Mlp(1)).build(8)


class TestHierarchicalSpace:
    def test_size_with_bits_fixed(self):
        assert hierarchical.space(Task, bits=(32,)).size > 10**6

    @pytest.mark.parametrize(("side", "patch"), [(8, 1), (16, 2), (28, 7), (32, 4)])
    def test_patch_follows_the_images(self, side, patch):
        class Images:
            classes, image_shape = 3, (3, side, side)

        space = hierarchical.space(Images)
        assert space.template.stem.patch == patch
        module = hierarchical.build(space.largest())
        assert module(torch.zeros(2, 3, side, side)).shape == (2, 3)
