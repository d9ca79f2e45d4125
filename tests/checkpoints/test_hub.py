"""To the Hub and back, on a stand-in of it: what is pushed, what isn't, and what goes wrong."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import BUNDLED, Command, tiny_model
from foreign_models import DDPM_STYLE, pipeline
from hub_stand_in import Hub, serving
from huggingface_hub import constants

import pdae_cli as public
from pdae_cli.checkpoints import load, load_dpm, read_model, write_model
from pdae_cli.checkpoints.hub import is_hub_id, reason_of
from pdae_cli.errors import ModelError, UsageError

OURS = {"README.md", "config.json", "model.safetensors", "attributes.safetensors",
        "latent_dpm.safetensors"}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as one:
        yield one


@pytest.fixture
def mine(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model's folder, with what isn't the model's."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "mine"))
    (folder / "training").mkdir()
    for name in ("training/dpm.jsonl", ".attributes.lock", "notes.txt", "z.safetensors"):
        (folder / name).write_text("private")
    return folder


def test_a_name_can_be_one_of_the_hub() -> None:
    assert is_hub_id("user/model-v1.5@main") and is_hub_id("user/model")
    files = ("a.png", "A.JPG", "z.safetensors", "film.gif", "all.zip", "scan.heic", "model.pt")
    others = ("labels/table.csv", "none", "a/b/c", "/a/b", "../a", "./a/b", "~/model")
    for name in (*(f"photos/{name}" for name in files), *others):
        assert not is_hub_id(name), name


class TestPython:
    def test_a_model_comes_back_as_it_was(self, hub: Hub, mine: Path, tmp_path: Path) -> None:
        model = public.Model.from_pretrained(mine, device="cpu")
        x_0 = torch.rand(2, 3, 32, 32) * 2 - 1
        codes = model.encode(x_0, inference_steps=2)
        commit = model.push_to_hub("someone/faces", private=True)
        assert commit.commit_url == f"{hub.url}/someone/faces/commit/{commit.oid}"
        assert hub.files["someone/faces"]["main"].keys() == OURS
        assert hub.private["someone/faces"] and len(hub.commits) == 1
        back = public.Model.from_pretrained("someone/faces", device="cpu")
        again = back.encode(x_0, inference_steps=2)
        assert torch.equal(codes.z, again.z) and torch.equal(codes.x_T, again.x_T)
        assert (back.name, back.weights_sha) == ("someone/faces", model.weights_sha)
        assert back.attributes is not None and back.latent_dpm is not None
        for offline in ({"local_files_only": True}, {"revision": commit.oid}):
            assert public.Model.from_pretrained("someone/faces", **offline).takes_z is False

    def test_saving_keeps_numbers_attributes_and_papers(self, mine: Path, tmp_path: Path) -> None:
        (mine / "LICENSE.md").write_text("Only for me.")
        write_model(mine, read_model(mine, "mine"), torch.float16)
        model = pickle.loads(pickle.dumps(public.load(str(mine), "cpu")))
        assert type(model) is public.Model
        assert model.save_pretrained(tmp_path / "saved" / "mine") is None
        for name in (*OURS, "LICENSE.md"):
            assert (tmp_path / "saved" / "mine" / name).read_bytes() == (
                mine / name
            ).read_bytes(), name
        model.attributes = model.latent_dpm = None
        model.save_pretrained(tmp_path / "saved" / "mine")
        left = {path.name for path in (tmp_path / "saved" / "mine").iterdir()}
        assert left == OURS - {"attributes.safetensors", "latent_dpm.safetensors"} | {"LICENSE.md"}

    def test_a_second_push_leaves_nothing_of_the_first(self, hub: Hub, mine: Path) -> None:
        model = public.load(str(mine), "cpu")
        model.save_pretrained(mine, push_to_hub=True, repo_id="someone/faces", branch="dev")
        hub.files["someone/faces"]["dev"]["theirs.md"] = b"kept"
        model.attributes = None
        model.push_to_hub("someone/faces", branch="dev", commit_message="Without attributes")
        files = hub.files["someone/faces"]
        assert files["dev"].keys() == OURS - {"attributes.safetensors"} | {"theirs.md"}
        assert files["main"] == {} and hub.commits[1] == "Without attributes"
        back = public.Model.from_pretrained("someone/faces", revision="dev", device="cpu")
        assert back.attributes is None

    def test_what_cannot_be_is_told(self, hub: Hub, mine: Path) -> None:
        model = public.load(str(mine), "cpu")
        with pytest.raises(UsageError, match="no revision 'v1'"):
            public.Model.from_pretrained(mine, revision="v1")
        with pytest.raises(UsageError, match="private without push_to_hub"):
            model.save_pretrained(mine, private=True)
        with pytest.raises(ModelError, match="the Hub didn't give it"):
            public.Model.from_pretrained("someone/else", local_files_only=True)
        with pytest.raises(TypeError):
            public.Model.from_pretrained(mine, devise="cpu")  # type: ignore[call-arg]
        assert hub.asked == []

    def test_a_slip_is_told_as_one(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a folder is meant, what answers is none of the Hub, or the token was cut."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs").mkdir()
        with pytest.raises(ModelError, match=r"runs is a folder here, .* write runs/mien@main"):
            load("runs/mien")
        assert hub.asked == []
        monkeypatch.setattr(hub, "answer", lambda *asked: (200, b"<html>", {}))
        with pytest.raises(ModelError, match="what answers isn't the Hub, but maybe a page"):
            load("run/mien")
        monkeypatch.setenv("HF_TOKEN", "hf_…")
        with pytest.raises(ModelError, match=r"no folder here, .* the token has letters that none"):
            load("run/mien")
        refused = OSError("no route to http://me:sec@ret@proxy.example/models")
        assert reason_of(refused, "wait") == "no route to http://…@proxy.example/models; wait"

    def test_what_was_downloaded_is_used_without_the_network(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though the repository has more: pickles of the same weights, which nobody wanted."""
        pipeline(tmp_path / "pipe", DDPM_STYLE)
        files = {path.relative_to(tmp_path / "pipe").as_posix(): path.read_bytes()
                 for path in (tmp_path / "pipe").rglob("*.*")}  # fmt: skip
        files |= {"unet/diffusion_pytorch_model.bin": b"a pickle", "optimizer.bin": b"another"}
        hub.files["someone/ddpm"], hub.private["someone/ddpm"] = {"main": files}, False
        before = load_dpm("someone/ddpm").dpm.state_dict()
        snapshot = next((tmp_path / "cache").rglob("model_index.json")).parent
        assert not [*snapshot.rglob("*.bin")]
        hub.asked.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for name, value in load_dpm("someone/ddpm").dpm.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert hub.asked == []

    @pytest.mark.parametrize(
        ("part", "status", "words"),
        [
            ("/api/models/", 401, "hf auth login"), ("/api/models/", 403, "ask for access"),
            ("/resolve/", 403, "ask for access"), ("/resolve/", 401, "hf auth login"),
            ("/api/models/", 404, "no such revision"),
            ("/api/models/", 500, "the Hub says: refused; try again later"),
        ],
    )  # fmt: skip
    def test_models_that_are_not_for_everyone(
        self, hub: Hub, mine: Path, part: str, status: int, words: str
    ) -> None:
        """Private, or of which everyone may know the files' names alone."""
        names = ("config.json", "model.safetensors")
        files = {name: (mine / name).read_bytes() for name in names}
        hub.files["someone/faces"], hub.private["someone/faces"] = {"main": files}, True
        hub.refuse = {part: status}
        with pytest.raises(ModelError, match=words) as raised:
            public.load("someone/faces", "cpu")
        assert "\n" not in str(raised.value)

    def test_what_others_keep_there_is_told_by_its_name(
        self, hub: Hub, pdae: Command, tmp_path: Path
    ) -> None:
        """Not by that of a folder of the cache, which may not even be there."""
        pipeline(tmp_path / "pipe", DDPM_STYLE)
        pipe = {path.relative_to(tmp_path / "pipe").as_posix(): path.read_bytes()
                for path in (tmp_path / "pipe").rglob("*.*")}  # fmt: skip
        bare = {name: data for name, data in pipe.items() if "scheduler_config" not in name}
        for name, files in (("pt", {"model.ckpt": b""}), ("pipe", pipe), ("bare", bare)):
            hub.files[f"a/{name}"], hub.private[f"a/{name}"] = {"main": files}, False
        for words, told in (
            ("convert a/pt -o m", "a/pt holds no model of pdae or diffusers; download"),
            ("convert a/bare -o m", "a/bare: found no scheduler_config.json"),
            ("info a/pipe", "`pdae convert a/pipe -o MODEL` makes it one"),
            ("train dpm m --first-stage a/pipe -o n", "a/pipe holds no AutoencoderKL"),
        ):
            result = pdae(*words.split())
            assert result.code == 4 and told in result.err, result.err
            assert "snapshots" not in result.err


class TestCommand:
    def test_it_is_pushed_with_its_licence(
        self, hub: Hub, pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The card and terms are the bundled model's; numbers of a tiny one are quicker."""
        for name in ("README.md", "LICENSE.md"):
            shutil.copy(BUNDLED / name, mine)
        result = pdae("push", mine, "someone/faces", "--json")
        assert result.code == 0, result.err
        files = hub.files["someone/faces"]["main"]
        assert files["LICENSE.md"] == (BUNDLED / "LICENSE.md").read_bytes()
        card = files["README.md"].decode()
        assert (
            "license: other\nlicense_name: non-commercial-research\nlicense_link: LICENSE.md"
            in card
        )
        assert "pdae.Model.from_pretrained('someone/faces')" in card
        assert not any(str(mine.parent) in data.decode(errors="replace") for data in files.values())
        assert result.err == "" and f"{hub.url}/someone/faces/commit/" in result.text
        again = pdae("push", mine, "someone/faces", "--private")
        assert again.code == 2 and "is there, and public" in again.err

    @pytest.mark.parametrize(
        ("where", "code", "words"),
        [
            ("faces", 2, "can't be a model's"), ("someone/faces@dev", 2, "can't be a model's"),
            ("a/b/c", 2, "can't be"), ("someone/fa--ces", 2, "can't be"),
            ("another/faces", 3, "may not write there"),
        ],
    )  # fmt: skip
    def test_names(
        self, hub: Hub, pdae: Command, mine: Path, where: str, code: int, words: str
    ) -> None:
        result = pdae("push", mine, where)
        assert (result.code, len(result.err.splitlines())) == (code, 1), result.err
        assert words in result.err and (code == 3 or hub.asked == [])

    @pytest.mark.parametrize(
        ("part", "status", "words"),
        [
            ("/create", 401, "doesn't know the token"), ("/commit/", 403, "may not write"),
            ("/preupload/", 404, "no such user, repository or revision"),
            ("/validate-yaml", 400, "refused"), ("/create", None, "cut off"),
            ("/commit/", None, "cut off"), ("", 0, "HF_ENDPOINT"),
        ],
    )  # fmt: skip
    def test_refusals(
        self, hub: Hub, pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch,
        part: str, status: int | None, words: str,
    ) -> None:  # fmt: skip
        """In one line, and nothing is committed."""
        if status == 0:  # nobody listens
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        elif status is None:
            hub.cut = part
        else:
            hub.refuse = {part: status}
        result = pdae("push", mine, "someone/faces")
        assert (result.code, len(result.err.splitlines())) == (3, 1), result.err
        assert words in result.err and "someone/faces" in result.err and hub.commits == []
        if part == "/commit/":  # the same command pushes it later
            hub.cut, hub.refuse = None, {}
            assert pdae("push", mine, "someone/faces").code == 0 and len(hub.commits) == 1

    def test_without_a_token_or_offline_nothing_is_asked(
        self, hub: Hub, pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = pdae("push", mine, "someone/faces")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
        unknown = pdae("push", mine, "someone/faces")
        for result, words in ((offline, "HF_HUB_OFFLINE"), (unknown, "hf auth login")):
            assert (result.code, len(result.err.splitlines())) == (2, 1) and words in result.err
        assert hub.asked == []

    def test_what_is_no_model_or_names_ones_home_stays(
        self, hub: Hub, pdae: Command, mine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        (mine / "README.md").write_text("# It\n\nMade of /home/somebody/pictures.\n")
        result = pdae("push", mine, "someone/faces")
        assert result.code == 2 and "README.md names /home/somebody" in result.err
        (mine / "model.safetensors").write_bytes(b"damaged")
        assert pdae("push", mine, "someone/faces").code == 4
        assert hub.asked == []


def test_a_model_made_in_memory_is_whole(tmp_path: Path) -> None:
    parts = vars(tiny_model())
    known = public.Model.__dataclass_fields__
    model = public.Model(**{name: part for name, part in parts.items() if name in known})
    model.save_pretrained(tmp_path / "new")
    back = public.load(str(tmp_path / "new"), "cpu")
    assert (back.latent_dpm is not None) and (tmp_path / "new" / "README.md").is_file()
