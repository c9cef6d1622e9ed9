"""`deploy render`: the text of every target, word for word, what its own schemas say of it, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
import yaml
from typer.testing import CliRunner

import gemma_ops
from gemma_ops.cli import app
from gemma_ops.config.loading import read_run_config
from gemma_ops.data import chat
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.errors import ConfigError
from gemma_ops.planning.devices import GIB
from gemma_ops.serving.render import FORMS, deployed
from gemma_ops.serving.render.ollama import template
from tests.helpers import registry_runs as runs
from tests.helpers.deployments import a_version

GOLDEN = Path(__file__).parents[1] / "golden"
USUAL = {"kserve": "merged", "vllm": "merged", "vllm-lora": "adapter"}
TEXTS = [*((form, USUAL.get(form, "q8_0")) for form in FORMS), ("kubernetes", "merged"), ("compose", "merged")]
CLUSTERS = ("kubernetes", "rayservice", "kserve", "compose")


def text_of(form, weights, **changes):
    return FORMS[form].text(a_version(form=weights, **changes))


def documents(form, weights="q8_0", **changes):
    return {part["kind"]: part for part in yaml.safe_load_all(text_of(form, weights, **changes))}


@pytest.mark.parametrize(("form", "weights"), TEXTS)
def test_the_text_is_word_for_word_what_was_reviewed(form, weights):
    file, made = GOLDEN / f"deploy-{form}-{weights}.txt", text_of(form, weights)
    assert file.exists(), f"review this, and keep it as {file}:\n{made}"
    assert made == file.read_text(encoding="utf-8")


def test_titles_are_names_that_a_service_may_have():
    titles = [a_version(name=name).title for name in ("Support_nano", "3B", "x" * 49 + "_y")]
    assert titles == ["support-nano", "model-3b", "x" * 49]


@pytest.mark.parametrize(("form", "weights"), TEXTS)
def test_every_text_is_pinned_and_says_how_the_bytes_come(form, weights):
    text = text_of(form, weights)
    for word in ("5a" * 32, "d1" * 32, weights, "thinking off", "8192"):
        assert word in text
    flat = re.sub(r"\n\s*- ", " ", text)
    assert re.search(
        rf"pull '?Support_nano/3'? --to \S+ --only {weights} --set '?machine\.mlflow=https://mlflow\.example", flat
    )
    assert ":latest" not in text
    assert "@" not in text.replace("SystemCallFilter=@system", "").replace("~@privileged @resources", "")


@pytest.mark.parametrize("form", CLUSTERS)
def test_what_must_not_leave_is_labelled_so(form):
    text = text_of(form, USUAL.get(form, "q8_0"), answers="local_only")
    assert "gemma-ops.dev/privacy: local_only" in text
    assert "# privacy: local_only. It learned rows that may not leave your machines" in text
    assert "signatures are checked here, and not there" in text_of(form, USUAL.get(form, "q8_0"), trusts=True)


@pytest.mark.parametrize("weights", ["q8_0", "merged"])
def test_kubernetes_takes_the_documents(weights):
    found = documents("kubernetes", weights)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (pull,), (server,) = pod["initContainers"], pod["containers"]
    assert pull["command"][:3] == ["gemma-ops", "pull", "Support_nano/3"]
    assert server["readinessProbe"]["httpGet"]["path"] == ("/ready" if weights == "q8_0" else "/health")
    assert pod["terminationGracePeriodSeconds"] > 30  # what our server lets requests end in
    assert server["resources"]["requests"] == {"cpu": "8", "memory": "11Gi"}
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for each in (pull, server) for mount in each["volumeMounts"]} <= names
    assert (
        found["Service"]["spec"]["selector"].items()
        <= found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate (72 MB of schemas) is not installed"
    )
    for document in found.values():
        validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("weights", ["q8_0", "merged"])
def test_compose_takes_the_file(weights):
    body = yaml.safe_load(text_of("compose", weights))
    pull, server = body["services"]["pull"], body["services"]["server"]
    assert server["depends_on"] == {"pull": {"condition": "service_completed_successfully"}}
    assert pull["volumes"] == server["volumes"]
    assert server["ports"] == ["127.0.0.1:8080:8080"]
    spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    spec.ComposeSpecification.model_validate(body)


def test_ray_takes_the_application():
    body = documents("rayservice")["RayService"]
    assert body["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 2
    serve_config = yaml.safe_load(body["spec"]["serveConfigV2"])
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve, of the extra `ray`, is not installed")
    (application,) = schema.ServeDeploySchema.model_validate(serve_config).applications
    from gemma_ops.serving import rayserve

    made = rayserve.app({**application.args, "source": "a.gguf@b"})._bound_deployment.init_args
    assert (made[0].replicas, made[0].slots, made[0].queue) == (2, 4, 32)
    assert made[1]._bound_deployment.init_args[0] == "a.gguf@b"
    module, _, name = application.import_path.partition(":")
    assert (module, callable(getattr(rayserve, name))) == (rayserve.__name__, True)


def test_kserve_finds_the_checkpoint_where_the_job_lays_it():
    found = documents("kserve", "merged")
    job, service = found["Job"]["spec"]["template"]["spec"], found["LLMInferenceService"]["spec"]
    (pull,), (volume, *_) = job["containers"], job["volumes"]
    folder = pull["command"][pull["command"].index("--to") + 1].removeprefix(pull["volumeMounts"][0]["mountPath"])
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert service["model"] == {"uri": f"pvc://{claim}{folder}/merged", "name": "Support_nano"}
    # The fields of the resource's definition, v1alpha1 and v1alpha2 (kserve/kserve, config/crd/full/llmisvc).
    assert set(service) <= {"model", "replicas", "router", "template"}
    assert service["template"]["containers"][0]["name"] == "main"
    assert json.loads(re.search(r"\{.*\}", service["template"]["containers"][0]["env"][0]["value"])[0]) == {
        "enable_thinking": False
    }


def test_systemd_takes_the_unit(tmp_path):
    text = text_of("systemd", "q8_0", mlflow="https://mlflow.example/a%20b")
    assert "machine.mlflow=https://mlflow.example/a%%20b" in text
    unit = tmp_path / "gemma-ops-support-nano.service"
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit.write_text(text.replace("/opt/gemma-ops/bin/gemma-ops", shutil.which("true")))
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(
        text.replace("DynamicUser=yes", "DynamicUser=perhaps").replace("/opt/gemma-ops/bin/gemma-ops", "/bin/true")
    )
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "perhaps" in done.stderr


@pytest.mark.parametrize("form", ["vllm", "vllm-lora"])
def test_scripts_are_scripts(form):
    done = subprocess.run(["bash", "-n"], input=text_of(form, USUAL[form]), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    thinks = text_of(form, USUAL[form], thinking="on")
    assert '{"enable_thinking": true}' in thinks


GO = {
    "range $i, $m := .Messages": "for m in messages",
    "$told := false": "set ns.told = false",
    "$told = true": "set ns.told = true",
    "if eq $i 0": "if loop.index0 == 0",
    'if and (eq .Role "system") (not (and $told (eq $i 0)))': "if m.role == 'system' and not (ns.told and loop.first)",
    **{f'{word} eq .Role "{role}"': f"{jinja} m.role == '{role}'"
       for word, jinja in (("if", "if"), ("else if", "elif")) for role in ("system", "user", "assistant")},
    "else": "else",
}  # fmt: skip
"""What Ollama's template is made of, in Jinja's words. The pairs of both were compared with Go's own text/template."""


def by_go(text, messages):
    """What Go's template gives, as far as the words above go: any other is a KeyError."""
    opened = []

    def translated(match):
        trim, word = match[1], match[2].strip()
        if word == ".Content":
            return "{{ m.content }}"
        if word == "end":
            return f"{{%{trim} end{opened.pop()} %}}"
        found = GO[word]
        if found.split()[0] in ("if", "for"):
            opened.append(found.split()[0])
        return f"{{%{trim} {found} %}}"

    made = "{% set ns = namespace(told=false) %}" + re.sub(r"\{\{(-?)\s(.*?)\s\}\}", translated, text)
    return jinja2.Environment(keep_trailing_newline=True).from_string(made).render(messages=messages)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("thinks", [False, True])
def test_ollamas_template_asks_what_ours_asks(thinks, large):
    system, ask, say = (
        {"role": role, "content": text}
        for role, text in (("system", "Be brief."), ("user", "Which?\nThis {or} that"), ("assistant", "This one."))
    )
    for messages in ([ask], [system, ask], [ask, say, ask], [system, ask, say, ask]):
        wanted = chat.render_chat(messages, add_generation_prompt=True, thinking=thinks, empty_thought=large).text
        assert by_go(template(thinks=thinks, empty_thought=large), messages) == wanted


def test_ollama_is_told_size_mode_and_sampling():
    text = text_of("ollama", "q8_0", size="31B", thinking="on", sampling=())
    assert "RENDERER gemma4-large" in text
    assert 'EVERY REQUEST must say "think": true' in text
    assert "PARAMETER temperature 0\n" in text
    with pytest.raises(ConfigError, match="does not say whether it was trained to think"):
        text_of("ollama", "q8_0", thinking="")


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A version of support-nano with an adapter and GGUF files, in a folder's MLflow; what the command line needs."""
    folder = tmp_path_factory.mktemp("registered")

    def quantize(out, settings, machine, *, base, adapter):
        done = runs.quantize(out, settings, machine, base=base, adapter=adapter)
        write_prompting(out / "q8_0", Prompting.of("off", "template"))
        return done

    config = runs.config(folder, model={"base": "google/gemma-4-E2B-it"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_OPS_CACHE", str(folder / "cache"))
        runs.make(config, steps={"quantize": quantize})
        yield ["--set", f"machine.mlflow={config.machine.mlflow}", "--set", f"machine.runs={config.machine.runs}"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def render(form, source, *more):
    return CliRunner().invoke(app, ["deploy", "render", source, "--as", form, *more])


def test_a_registered_version_is_rendered_and_its_pull_brings_the_bytes(registered, tmp_path):
    done = render("ollama", "support-nano/1", *registered, "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "Modelfile").read_text()
    command = re.search(r"gemma-ops (pull .*)", text)[1].split()
    assert CliRunner().invoke(app, command).exit_code == 0
    file = tmp_path / re.search(r"FROM \./(.*)", text)[1]
    assert f"sha256 of what is served {hashlib.sha256(file.read_bytes()).hexdigest()}" in text
    assert [path.name for path in file.parent.parent.iterdir()] == [file.parent.name]  # of the weights, only these
    assert f"made by gemma-ops {gemma_ops.__version__}" in text


def test_vllms_folder_holds_the_adapter(registered, tmp_path):
    done = render("vllm-lora", "support-nano/1", *registered, "--to", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    laid = tmp_path / "out" / "adapters" / "support-nano-1"
    assert sorted(path.name for path in laid.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert '"path": "adapters/support-nano-1"' in (tmp_path / "out" / "serve.sh").read_text()


def test_what_the_configuration_says_goes_along(registered):
    said = ["serve.queue=9", "serve.also_called=[a, b]", "serve.canary=reported", "serve.slots=2", "serve.context=1000"]
    config = read_run_config([], ["name=any", *registered[1::2], *said])
    job = deployed("support-nano/1", config, wants=FORMS["kubernetes"].wants)
    words = job.serve(host="127.0.0.1", keys="keys")
    assert words[:3] == ["gemma-ops", "serve", "support-nano/1"]
    again = read_run_config([], ["name=any", *words[4::2]]).serve
    assert again == config.serve.model_copy(update={"keys": "keys", "format": "q8_0"})
    file = config.machine.runs / Path("support/quantize/q8_0/model.gguf")
    assert job.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    cache = 2 * 1000 * 512  # two slots of what the verdict says a token costs
    assert job.memory - 0.5 * GIB == pytest.approx(file.stat().st_size + cache, abs=500)  # prompting.json beside it


IMAGE = ("--set", "launch.image=registry.example/gemma-ops:1")


@pytest.mark.parametrize(
    ("form", "source", "more", "why"),
    [
        ("compose", "support-nano/1", ("--set", "launch.image=gemma-ops"), "may be another one tomorrow"),
        ("compose", "support-nano/1", ("--set", "launch.image=host:5000/ops:latest"), "may be another one tomorrow"),
        ("kubernetes", "support-nano/1", IMAGE, "can't read the registry in"),
        ("systemd", "support-nano/1", (), "can't read the registry in"),
        ("vllm", "support-nano/1", (), r"has no merged, which this target needs.*register\.artifacts=\[merged\]"),
        ("ollama", "support-nano/1", ("--set", "serve.format=bf16"), "has no bf16"),
        ("ollama", "some.gguf@folder", (), "is no registered version"),
        ("ollama", "support", (), "is no registered version"),
        ("ollama", "support-nano@nobody", (), "has no alias 'nobody'"),
        ("ollama", "support-nano/1", ("--set", "serve.challenger.share=0.1"), "follows an alias"),
        ("ollama", "support-nano/1", ("--set", "serve.certificate=a.pem"), "serve.certificate is a file on this"),
    ],
)  # fmt: skip
def test_refusals(registered, form, source, more, why):
    done = render(form, source, *registered, *more)
    assert done.exit_code != 0
    assert re.search(why, str(done.exception), re.DOTALL), done.exception


def test_what_needs_an_image_or_a_repository_says_so():
    with pytest.raises(ConfigError, match="needs an image with gemma-ops"):
        text_of("kubernetes", "q8_0", image=None)
    with pytest.raises(ConfigError, match="nano has none"):
        text_of("vllm-lora", "adapter", base="nano")
    assert "127.0.0.1:5000 is this machine's own address" in text_of("compose", "q8_0", mlflow="http://127.0.0.1:5000")
