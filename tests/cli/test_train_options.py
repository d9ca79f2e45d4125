"""pdae train's options: wrong ones, and what launchers say by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from conftest import Command
from safetensors import safe_open
from small_runs import TINY, assert_equal, folder_of, losses, state, untrained_diffae

from pdae_cli.checkpoints import write_model
from pdae_cli.cli.run.launch import NAMES, on_its_machine


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("photos"), 12)


class TestLaunchers:
    """What accelerate's launcher, Slurm and MPI say by the environment."""

    @pytest.fixture
    def train(
        self, pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Command:
        def run(*args: object, **variables: str):  # type: ignore[no-untyped-def]
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                more = ("--images", 8, *args)
                return pdae("train", "dpm", photos, "-o", tmp_path / "run", *TINY, *more)

        return run

    def test_accumulation_is_ours(self, train: Command, tmp_path: Path) -> None:
        """accelerate would divide losses by the launcher's, and compile."""
        assert train("-q").code == 0
        alone = state(tmp_path / "run")
        (tmp_path / "run").rename(tmp_path / "alone")
        theirs = {"GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "INDUCTOR"}
        result = train(**{f"ACCELERATE_{name}": value for name, value in theirs.items()})
        assert result.code == 0 and result.err.count("is set aside") == 2
        assert_equal(alone, state(tmp_path / "run"))
        same = train("--accumulate", 4, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
        assert same.code == 0 and "set aside" not in same.err

    @pytest.mark.parametrize(
        ("asked", "given", "kept", "line"),
        [
            ("bf16", (), "bf16", False),
            ("no", (), "no", False),
            ("bf16", ("--precision", "float32"), "no", True),
            ("no", ("--precision", "bfloat16"), "bf16", False),
            ("fp16", ("--precision", "bfloat16"), "bf16", True),
        ],
    )
    def test_precision(
        self, train: Command, tmp_path: Path, asked: str, given: tuple[str], kept: str, line: bool
    ) -> None:
        """The launcher's is followed, and ours goes before it, which is said."""
        result = train(*given, ACCELERATE_MIXED_PRECISION=asked)
        assert result.code == 0
        assert ("goes before the launcher's mixed precision" in result.err) == line
        with safe_open(tmp_path / "run" / "training" / "dpm.safetensors", "pt") as file:
            assert f'"precision": "{kept}"' in file.metadata()["options"]

    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"ACCELERATE_MIXED_PRECISION": "fp16"}, ("fp16", "--precision")),
            ({"ACCELERATE_USE_FSDP": "true"}, ("FSDP",)),
            ({"ACCELERATE_USE_DEEPSPEED": "true"}, ("DEEPSPEED",)),
            ({"ACCELERATE_USE_MEGATRON_LM": "true"}, ("MEGATRON_LM",)),
            ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, ("PARALLELISM_CONFIG",)),
            ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, ("SLURM_NTASKS is 8", "torchrun")),
            ({"PMI_SIZE": "2"}, ("PMI_SIZE is 2", "torchrun")),
            ({"OMPI_COMM_WORLD_SIZE": "2"}, ("OMPI_COMM_WORLD_SIZE is 2", "torchrun")),
            ({"RANK": "1", "WORLD_SIZE": "2"}, ("WORLD_SIZE is 2", "unset WORLD_SIZE")),
        ],
    )
    def test_what_is_refused(
        self, train: Command, tmp_path: Path, variables: dict[str, str], words: tuple[str]
    ) -> None:
        result = train(**variables)
        assert result.code == 2 and result.err.count("\n") == 1
        assert all(word in result.err for word in words)
        assert not (tmp_path / "run").exists()

    def test_one_task_is_none_too_many(self, train: Command) -> None:
        assert train("-q", SLURM_NTASKS="1").code == 0
        assert train("-q", SLURM_NTASKS="8").code == 0  # in salloc's shell
        slurm = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
        launcher = dict(zip(NAMES, ("0", "1", "0", "localhost", "0"), strict=True))
        assert train("-q", **slurm, **launcher).code == 0

    @pytest.mark.parametrize(
        "left", [{"WORLD_SIZE": "2"}, {"LOCAL_RANK": "0", "RANK": "1"}, {"WORLD_SIZE": ""}], ids=str
    )
    def test_what_a_launcher_left_is_nothing(self, train: Command, left: dict[str, str]) -> None:
        """accelerate alone would wait for the others."""
        AcceleratorState._reset_state(reset_partial_state=True)
        assert train("-q", **left).code == 0


@pytest.mark.parametrize(("left_out", "number"), [(None, 1), ("LOCAL_RANK", 0), ("RANK", 0)])
def test_a_process_is_placed_by_its_number_on_its_machine(
    left_out: str | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate does; by its number of all, the third of two nodes' had another GPU."""
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    for name, value in (launcher | {"MASTER_PORT": "1"}).items():
        if name != left_out:
            monkeypatch.setenv(name, value)
    assert on_its_machine() == number


def test_a_tracker_that_fails_is_one_line(
    pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: object) -> None:
        raise ConnectionError("no\nlogin")

    pytest.importorskip("tensorboard")
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", start)
    result = pdae("train", "dpm", photos, "-o", tmp_path, *TINY, "--tracker", "tensorboard", "-q")
    assert result.code == 2 and "can't begin: ConnectionError: no login" in result.err
    assert result.err.count("\n") == 1


def test_a_tracker_that_fails_later_costs_no_training(
    pdae: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and the log has the rest."""

    def fail(self: object, *what: object, **how: object) -> None:
        raise ConnectionError("the server\nis gone")

    pytest.importorskip("tensorboard")
    for name in ("log", "finish"):
        monkeypatch.setattr(f"accelerate.tracking.TensorBoardTracker.{name}", fail)
    line = ("train", "dpm", photos, "-o", tmp_path, *TINY, "--images", 32)
    result = pdae(*line, "--tracker", "tensorboard", "-q")
    assert result.code == 0 and result.err.count("\n") == 1
    assert "warning: a tracker fails: ConnectionError: the server is gone" in result.err
    assert len(losses(tmp_path)) == 4 and (tmp_path / "model.safetensors").exists()


def test_what_the_environment_says_of_model_and_device(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As for other commands; a device that isn't there is no reason to take another."""
    command = ("train", "dpm", photos, "-o", tmp_path / "run", *TINY[:-2], "--dry-run")
    monkeypatch.setenv("PDAE_DEVICE", "xpu")
    result = pdae(*command)
    assert result.code == 2 and "there is no xpu here; --device auto" in result.err
    monkeypatch.setenv("PDAE_DEVICE", "cpu")
    assert pdae(*command).code == 0
    result = pdae("train", "latent", photos, "--images", 8, "--batch-size", 8)  # of the whole one
    assert result.code == 2 and "has a latent DPM, which this run would replace" in result.err


@pytest.mark.parametrize(
    "line",
    [
        "dpm --grad-clip 0",
        "dpm --grad-clip -1",
        "dpm --seed 9223372036854775808",
        "dpm --seed -9223372036854775809",
        *(f"dpm --lr {value}" for value in ("0", "-1", "inf", "nan")),
        *(f"dpm --{name} 1000000000001" for name in ("images", "warmup", "ema-images")),
        *(f"dpm --{name} 1000000000001" for name in ("log-every", "save-every")),
        *(f"dpm --{name} 1048577" for name in ("batch-size", "accumulate")),
        "latent --layers 300",
        "latent --width 2000000",
        *(f"latent --dropout {value}" for value in ("2", "-1", "nan")),
        "autoencoder --z-dim 2000000 --condition hat",
        "autoencoder --gamma nan",
    ],
)
def test_numbers_have_ranges(line: str, pdae: Command, photos: Path, tmp_path: Path) -> None:
    stage, option, *rest = line.split()
    place = () if stage == "latent" else ("-o", tmp_path / "run")
    result = pdae("train", stage, photos, *place, option, *rest)
    assert result.code == 2 and f"Invalid value for '{option}'" in result.err
    assert not (tmp_path / "run").exists()


def test_pictures_are_of_colour_or_gray(pdae: Command, photos: Path, tmp_path: Path) -> None:
    for count in (2, 4):
        result = pdae("train", "dpm", photos, "-o", tmp_path / "run", "--channels", count)
        assert result.code == 2 and "3 for colour or 1 for gray" in result.err


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ("dpm", "--image-size 128", "--image-size of the model of --init-from is 32"),
        ("dpm", "--image-size 64", "is 32"),
        ("dpm", "--dropout 0.1", "is 0.0"),
        ("dpm", "--betas cosine", "is linear"),
        ("dpm", "--prediction v", "is eps"),
        ("dpm", "--channels 1", "is 3"),
        ("dpm", "--multipliers 1,3", "is 1,2"),
        ("diffae", "--image-size 64", "is 32"),
        ("diffae", "--z-dim 7", "is 6"),
        ("autoencoder", "--z-dim 512", "--z-dim of the model of --init-from is 6"),
    ],
)
def test_a_model_to_go_on_with_is_as_it_is(
    stage: str, options: str, said: str, pdae: Command, photos: Path, begun: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    line = ("train", stage, photos, "-o", tmp_path / "run", "--init-from", begun[stage])
    refused = pdae(*line, *options.split(), "--device", "cpu")
    assert refused.code == 2 and said in refused.err and refused.err.count("\n") == 1
    assert f"leave {options.split()[0]} out" in refused.err


@pytest.mark.parametrize(
    ("stage", "same"),
    [
        ("dpm", (*TINY[:12], "--betas", "linear", "--prediction", "eps", "--dropout", 0)),
        ("diffae", (*TINY[:12], "--z-dim", 6)),
        ("autoencoder", ("--z-dim", 6)),
    ],
)
def test_what_it_is_may_be_said(
    stage: str, same: tuple[object, ...], pdae: Command, photos: Path, begun: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    line = ("train", stage, photos, "-o", tmp_path / "run", "--init-from", begun[stage])
    small = ("--images", 8, "--batch-size", 4, "--device", "cpu", "--dry-run")
    result = pdae(*line, *same, *small)
    assert result.code == 0, result.err


@pytest.fixture
def begun(tiny_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A model of each kind, by the stage that goes on with it."""
    write_model(tmp_path / "diffae", untrained_diffae())
    return {"dpm": tiny_folder, "autoencoder": tiny_folder, "diffae": tmp_path / "diffae"}


@pytest.mark.parametrize("stage", ["dpm", "classifier"])
def test_a_diffae_is_no_plain_diffusion_model(
    stage: str, pdae: Command, begun: dict[str, Path], tmp_path: Path
) -> None:
    """Which is said before any picture is read."""
    photos = folder_of(tmp_path / "photos", 4)
    (photos / "labels.csv").write_text("file,hat\n0.png,1\n1.png,0\n")
    (photos / "3.png").write_bytes(b"no picture")
    how = {"dpm": ("--init-from",), "classifier": ("--condition", "hat", "--dpm")}[stage]
    result = pdae("train", stage, photos, "-o", tmp_path / "run", *how, begun["diffae"])
    assert result.code == 2 and "takes z itself; give a plain diffusion model" in result.err
    assert "3.png" not in result.err and not (tmp_path / "run").exists()


def test_gamma_is_of_one_weighting(pdae: Command, photos: Path, tmp_path: Path) -> None:
    line = ("train", "autoencoder", photos, "--dpm", "none", "-o", tmp_path / "run")
    result = pdae(*line, "--weighting", "v", "--gamma", "0.5")
    assert result.code == 2 and "--gamma is of --weighting lambda; leave it out" in result.err
