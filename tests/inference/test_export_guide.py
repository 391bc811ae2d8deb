"""The pages of docs/export.md write the greedy text of `smtkit generate`, without smtkit.

The browser page needs Chromium and onnxruntime-web: `make browser` installs the latter.
"""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import smtkit
from conftest import Pipeline
from smtkit.config import ExportConfig
from smtkit.stages import export

ROOT = Path(__file__).parents[2]
WEB = ROOT / "build" / "browser" / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def block(language: str) -> str:
    """The one code block of the page in that language."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an exported RNN."""
    found = tmp_path_factory.mktemp("exported")
    export.run(ExportConfig(steps=5), pipeline.rnn, found / "model.onnx")
    return found


SEED, TEMPERATURE = 4, 0.8


def expected(pipeline: Pipeline, temperature: float) -> str:
    """What both pages write: the prompt and its continuation."""
    rnn = smtkit.load_rnn(pipeline.rnn, device="cpu")
    return "memory" + rnn.generate("memory", 294, temperature=temperature, seed=SEED)


@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_the_python_page_writes_the_text_of_smtkit(
    folder: Path, pipeline: Pipeline, temperature: float
) -> None:
    page = block("python")
    assert len(page.splitlines()) <= 25
    without = "import sys\nsys.modules['smtkit'] = sys.modules['torch'] = None\n"
    if temperature:
        page = page.replace("0.0, np.random.default_rng(0).random", f"{temperature}, random")
    result = subprocess.run(
        [sys.executable, "-c", without + block("py") + page],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert result.stdout.decode() == expected(pipeline, temperature) + "\n"


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The address at which `folder` is served."""
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(WEB)
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/index.html"
        served.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(
    not (WEB / "onnxruntime-web").exists(), reason="`make browser` installs onnxruntime-web"
)
@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_the_browser_page_writes_the_text_of_smtkit(
    folder: Path, server: str, pipeline: Pipeline, temperature: float
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    content = block("html")
    if temperature:
        before, after = "temperature = 0, random = Math.random", f"temperature = {temperature}"
        assert before in content
        content = content.replace(before, after)
        content = content.replace("\nconst step", f"\n{block('js')}\nconst step")
    (folder / "index.html").write_text("<!doctype html>\n<meta charset=utf-8>\n" + content)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        page.wait_for_function("document.title === 'done'", timeout=120_000)
        assert not errors
        assert page.text_content("#text") == expected(pipeline, temperature)
        browser.close()
