"""Every field of every family's config has a row in docs/checkpoints.md, and what is said there
happens: diffusers itself is asked which fields there are."""

from __future__ import annotations

import inspect
import json
import lzma
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import fields_page
import foreign_models
import pytest
import torch
import yaml
from conftest import ROOT
from foreign_models import ADM_STYLE, DDPM_STYLE, converted, guided, pipeline, states

from pdae_cli.checkpoints import guided as guided_reader
from pdae_cli.checkpoints.convert import read_foreign
from pdae_cli.checkpoints.diffusers import SCHEDULERS
from pdae_cli.checkpoints.source import Source
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.errors import ModelError, UsageError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's packages
    import diffusers
    from diffusers import DDIMInverseScheduler, DDIMScheduler

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own
quick = foreign_models.quick
KINDS = fields_page.kinds()
# What `create_model_and_diffusion` of the two programs takes, and their training scripts.
FLAGS = """
    image_size num_channels num_res_blocks num_heads num_heads_upsample num_head_channels
    attention_resolutions channel_mult dropout class_cond use_checkpoint use_scale_shift_norm
    resblock_updown use_fp16 use_new_attention_order learn_sigma sigma_small diffusion_steps
    noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps
    rescale_learned_sigmas schedule_sampler lr weight_decay lr_anneal_steps batch_size microbatch
    ema_rate log_interval save_interval resume_checkpoint fp16_scale_growth data_dir clip_denoised
    num_samples use_ddim model_path large_size small_size
""".split()  # noqa: SIM905


def of_class(kind: type[Any]) -> set[str]:
    """The fields of a class of diffusers, its config's."""
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def test_the_page_is_of_now() -> None:
    page = fields_page.PAGE.read_text()
    assert page == fields_page.page() and fields_page.UNTOLD not in page


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        ("diffusers: UNet2DModel", ("UNet2DModel",)),
        ("diffusers: AutoencoderKL, VQModel", ("AutoencoderKL", "VQModel")),
        ("diffusers: scheduler_config.json", SCHEDULERS),
    ],
)
def test_diffusers_fields_are_in_the_table(config: str, classes: tuple[str, ...]) -> None:
    page = fields_page.PAGE.read_text()
    for name in classes:
        fields = of_class(getattr(diffusers, name))
        assert fields - KINDS[config].known() == set(), name
        assert all(f"`{field}`" in page for field in fields)


def test_schedulers_that_are_taken_have_the_betas_of_ddpm_by_default() -> None:
    for name in SCHEDULERS:
        given = inspect.signature(getattr(diffusers, name).__init__).parameters
        found = [given[field].default for field in ("beta_start", "beta_end", "beta_schedule")]
        assert found == [1e-4, 0.02, "linear"], name


def test_flags_are_in_the_table() -> None:
    assert set(FLAGS) - guided_reader.FIELDS.known() == set()


def test_the_authors_configs_are_in_the_table(tmp_path: Path) -> None:
    """Of PDAE and Diff-AE, as their programs write them."""
    sections = {"denoise_fn_config", "diffusion_config", "latent_denoise_fn_config"}
    for path in (ROOT / "tests" / "golden" / "pdae").rglob("config.yml"):
        content = yaml.safe_load(path.read_text())
        assert content.keys() <= KINDS["PDAE: config.yml"].known()
        for name in sections & content.keys():
            assert content[name].keys() <= KINDS[f"PDAE: {name}"].known()
    folder = tmp_path
    packed = ROOT / "tests" / "golden" / "diffae" / "tiny64_autoenc_latent" / "last.ckpt.xz"
    (folder / "last.ckpt").write_bytes(lzma.decompress(packed.read_bytes()))
    top = Source(folder).part(folder / "last.ckpt", "hyper_parameters")
    unrepeated = {name for name in top if not name.startswith("net_")}
    assert unrepeated <= KINDS["Diff-AE: hyper_parameters"].known()
    assert not any("unknown" in note for note in read_foreign(Source(folder)).notes)
    shape = top["model_conf"]
    assert shape.keys() <= KINDS["Diff-AE: model_conf"].known()
    assert shape["latent_net_conf"].keys() <= KINDS["Diff-AE: latent_net_conf"].known()


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_has_one_fate(kind: str) -> None:
    fields = KINDS[kind]
    idle = " ".join(fields.idle.values()).split()
    assert len(idle) == len(set(idle))
    assert not set(idle) & {*fields.taken.split(), *fields.fixed}


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Fields with which diffusers has no way to noise.
NO_WAY_BACK = {("timestep_spacing", "linspace"): "linspace",
               ("prediction_type", "sample"): "divides by zero"}  # fmt: skip
# A file, a field of it, a value that isn't supported, and what is said.
REFUSED = [
    ("unet", "center_input_sample", True, "center_input_sample"),
    ("unet", "time_embedding_type", "fourier", "time_embedding_type"),
    ("unet", "act_fn", "gelu", "act_fn"),
    ("unet", "mid_block_scale_factor", 2.0, "mid_block_scale_factor"),
    ("unet", "add_attention", False, "add_attention"),
    ("unet", "num_class_embeds", 10, "num_class_embeds"),
    ("unet", "down_block_types", ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"],
     "down_block_types"),
    ("unet", "up_block_types", ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"], "attention"),
    ("unet", "_class_name", "UNet2DConditionModel", "Condition"),
    ("unet", "sample_size", None, "sample_size"),
    ("unet", "norm_num_groups", 7, "groups"),
    ("unet", "downsample_padding", False, "downsample_padding"),  # which isn't 0
    ("scheduler", "prediction_type", "flow", "prediction_type"),
    ("scheduler", "beta_schedule", "sigmoid", "beta_schedule"),
    ("scheduler", "trained_betas", [0.1], "trained_betas"),
    ("scheduler", "rescale_betas_zero_snr", True, "rescale_betas_zero_snr"),
    ("scheduler", "thresholding", True, "thresholding"),
    ("scheduler", "_class_name", "FlowMatchEulerDiscreteScheduler", "FlowMatchEuler"),
    ("scheduler", "use_flow_sigmas", True, "use_flow_sigmas"),
    ("scheduler", "timestep_spacing", "even", "timestep_spacing 'even'"),
    ("scheduler", "steps_offset", -1, "steps offset must be"),
    ("scheduler", "beta_start", 1e-320, "beta start must be"),
    ("scheduler", "num_train_timesteps", 1, "timesteps must be"),
    ("scheduler", "variance_type", "learned", "variance_type 'learned'"),
]  # fmt: skip


class TestDiffusers:
    @pytest.mark.parametrize(
        ("count", "fields"),
        [
            (10, {}),
            (30, {"clip_sample": False}),
            (7, {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
            (10, {"timestep_spacing": "trailing"}),
            (48, {"timestep_spacing": "trailing", "clip_sample": False}),
            (30, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
            (10, {"timestep_spacing": "linspace"}),
            (1, {"timestep_spacing": "linspace"}),
            (10, {"clip_sample_range": 2.0}),
            (10, {"clip_sample": None, "set_alpha_to_one": None, "trained_betas": None}),
            (10, {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
                  "clip_sample": False}),
            (10, {"num_train_timesteps": 400, "beta_end": 0.05}),
            (10, {"prediction_type": "sample", "clip_sample": False}),
        ],
        ids=str,
    )  # fmt: skip
    def test_its_ddim_both_ways(self, tmp_path: Path, count: int, fields: dict[str, Any]) -> None:
        pipe = pipeline(tmp_path, ADM_STYLE)
        path = tmp_path / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(dict(DDIMScheduler(**fields).config) | fields))
        model = converted(tmp_path)
        assert model.config.clip_sample is bool(fields.get("clip_sample", True))
        settings = Sampling(parity="diffusers", inference_steps=count)
        trajectory, predict = model.trajectory(settings), model.guided(settings)
        for encode in (False, True):
            refused = [word for field, word in NO_WAY_BACK.items() if field in fields.items()]
            if encode and refused:
                with pytest.raises(UsageError, match=refused[0]):
                    trajectory.to_noise(predict, states(model))
                continue
            kind = DDIMInverseScheduler if encode else DDIMScheduler
            # Where clamps are undone, rounding grows: on the way there one row has any.
            clamps = not encode or fields == {}
            clamp = {} if clamps else {"clip_sample": False}
            program = kind(**{k: v for k, v in (fields | clamp).items() if k in of_class(kind)})
            ours = replace(trajectory, clip_sample=trajectory.clip_sample and clamps)
            program.set_timesteps(count)
            x = expected = states(model) * 0.5
            with torch.no_grad():
                for t in program.timesteps:
                    expected = program.step(pipe(expected, t).sample, t, expected).prev_sample
            made = ours.to_noise(predict, x).x_T if encode else ours.to_picture(predict, x, [])
            assert made is not None
            assert torch.allclose(made, expected, atol=2e-3 * expected.abs().max().item())

    @pytest.mark.parametrize(
        ("count", "fields", "words"),
        [
            (1000, {"steps_offset": 1}, "steps_offset 1"),
            (61, {"timestep_spacing": "trailing"}, "trailing"),  # theirs ends at timestep -1
            (500, {"num_train_timesteps": 400}, "no 500 steps of 400"),
        ],
    )
    def test_steps_that_it_hasnt_itself(
        self, tmp_path: Path, count: int, fields: dict[str, Any], words: str
    ) -> None:
        pipeline(tmp_path, ADM_STYLE)
        changed(tmp_path / "scheduler" / "scheduler_config.json", **fields)
        settings = Sampling(parity="diffusers", inference_steps=count)
        with pytest.raises(UsageError, match=words):
            converted(tmp_path).trajectory(settings).timesteps()

    @pytest.mark.parametrize(("where", "field", "value", "words"), REFUSED)
    def test_what_is_refused_is_named(
        self, tmp_path: Path, where: str, field: str, value: Any, words: str
    ) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        name = "config.json" if where == "unet" else "scheduler_config.json"
        changed(tmp_path / where / name, **{field: value})
        with pytest.raises(ModelError, match=words):
            converted(tmp_path)

    def test_nulls_and_fields_that_are_missing_mean_the_defaults(self, tmp_path: Path) -> None:
        pipe = pipeline(tmp_path, DDPM_STYLE)
        empty = ("dropout", "act_fn", "center_input_sample", "mid_block_scale_factor")
        changed(tmp_path / "unet" / "config.json", **dict.fromkeys(empty))
        path = tmp_path / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({"beta_schedule": None, "timestep_spacing": None}))
        model = converted(tmp_path)
        x, t = states(model), torch.tensor([3, 801])
        with torch.no_grad():
            assert torch.allclose(model.dpm(x, t), pipe(x, t).sample, atol=2e-5)
        assert model.config.schedule.betas == "linear" and model.config.clip_sample

    def test_what_the_network_predicts_was_another_field_once(self, tmp_path: Path) -> None:
        """And where both are there they must say the same."""
        pipeline(tmp_path, DDPM_STYLE)
        path = tmp_path / "scheduler" / "scheduler_config.json"
        for said, meant in ((True, "eps"), (None, "eps"), (False, "x_0")):
            changed(path, prediction_type=None, predict_epsilon=said)
            made = read_foreign(Source(tmp_path))
            assert made.model.config.prediction == meant and made.notes == []
        changed(path, prediction_type="epsilon")
        with pytest.raises(ModelError, match="prediction_type 'epsilon' isn't supported"):
            converted(tmp_path)

    def test_unknown_fields_are_named(self, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        changed(tmp_path / "unet" / "config.json", decay=0.9, _diffusers_version="9")
        changed(tmp_path / "scheduler" / "scheduler_config.json", **{"new\x1b[2J": 1})
        notes = read_foreign(Source(tmp_path)).notes
        assert [note.rpartition("left out: ")[2] for note in notes] == ["decay", r"new\x1b[2J"]

    def test_the_side_may_be_a_pair(self, tmp_path: Path) -> None:
        pipeline(tmp_path, DDPM_STYLE)
        changed(tmp_path / "unet" / "config.json", sample_size=[16, 16])
        assert converted(tmp_path).config.image_size == 16
        changed(tmp_path / "unet" / "config.json", sample_size=[16, 32])
        with pytest.raises(ModelError, match="only square ones"):
            converted(tmp_path)


class TestImprovedDiffusion:
    """Models of 4,000 steps, whose timesteps their program may scale."""

    def test_timesteps_are_scaled_where_the_flags_say_so(self, tmp_path: Path) -> None:
        steps = {"diffusion_steps": 4000, "noise_schedule": "cosine", "sigma_small": True}
        network = guided(tmp_path, lambda flags: flags.update(steps, rescale_timesteps=True)).dpm
        model = converted(tmp_path)
        x = states(model)
        with torch.no_grad():
            asked = model.dpm(x, torch.tensor([400, 3]))
            assert torch.equal(asked, network(x, torch.tensor([100.0, 0.75])))
        assert (model.config.variance, model.schedule.timesteps) == ("small", 4000)
        path = tmp_path / "model_flags.json"
        changed(path, rescale_timesteps=False)
        with torch.no_grad():
            t = torch.tensor([400, 3])
            assert torch.equal(converted(tmp_path).dpm(x, t), network(x, t))
        changed(path, rescale_timesteps=None)
        with pytest.raises(ModelError, match="rescale_timesteps, which matters with 4000"):
            converted(tmp_path)
