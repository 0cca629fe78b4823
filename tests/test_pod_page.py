"""The computed tables of docs/tpu_pod.md: up to date, and right on made-up results."""

import json

import pytest

from benchmarks import collectives, pod_page

RESULTS = pod_page.ROOT / "results"
WORK = pod_page.Work(macs=10**9, outputs=10**6, weights=9 * 10**6)
DEVICE = pod_page.Device(1e14, 1e10, 1e12, 1e11, cores=20, price=2.0)


def made_up(reduced=10**8):
    row = {
        "bytes": {"all-reduce": {"operations": 7, "arrays": 9, "bytes": reduced}},
        "expected": {
            "gradients": 90_000_000,
            "statistics": 5_000_000,
            "statistics_gradients": 5_000_000,
        },
        "over_expected": reduced / 10**8,
        "state": 4_000_000,
        "state_on_a_device": 1_000_000,
    }
    return {"networks": {"ResNet-18 on ImageNet": {"pmap": row}}}


def test_the_page_is_up_to_date():
    """Else: python benchmarks/pod_page.py."""
    text = pod_page.PAGE.read_text(encoding="utf-8")
    assert pod_page.filled(text, RESULTS) == text


def test_work_is_that_of_the_known_network():
    """1.81 G products, 11.7 M parameters less stem, head and BatchNorm (He et al.)."""
    work = pod_page.count()
    assert work.macs == pytest.approx(1.814e9, rel=1e-3)
    assert work.weights == 11_689_512 - 9408 - 513_000 - 9600


def test_lower_bounds():
    found = pod_page.lower_bounds(DEVICE, WORK, made_up(), rate=400.0)
    network = 6 * 1e9 * 128
    subnet = 6 * 1e6 * 2 * 9 * 64 * 6
    assert found["arithmetic"] == pytest.approx((network + subnet) / 1e14)
    assert found["memory"] == pytest.approx(16 * 1e6 * 128 / 1e12)
    assert found["all-reduce"] == pytest.approx(2 * 1e8 / 1e11)
    assert found["decoding"] == pytest.approx(128 / (20 * 400))
    assert pod_page.floor(DEVICE, WORK, made_up(), 400.0) == found["decoding"]
    without = pod_page.floor(DEVICE, WORK, made_up())
    assert without == max(found["arithmetic"], found["memory"], found["all-reduce"])


PAGE = "\n".join(
    f"<!-- {name}: written -->\nold\n<!-- end of {name} -->"
    for name in ("reduced", "memory", "floors", "run", "hosts")
)


@pytest.mark.parametrize("decoded", [None, 250.0])
def test_page_with_and_without_a_decode_rate(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(pod_page, "count", lambda: WORK)
    (tmp_path / "collectives.json").write_text(json.dumps(made_up()))
    if decoded:
        rates = {"pillow": 100.0, "ours": decoded, "tensorflow": None}
        result = {"images_per_second_per_core": rates}
        (tmp_path / "decode.json").write_text(json.dumps(result))
    page = pod_page.filled(PAGE, tmp_path)
    assert "old" not in page and pod_page.filled(page, tmp_path) == page
    assert ("not measured" in page) == (not decoded)
    assert ("a second: 250 (pillow 100), measured." in page) == bool(decoded)
    assert "| 90.000 | 10.000 | 100.000 | 1.0000 | 0 | 7 |" in page
    assert "| 4.000 | 1.000 | 0.250 |" in page


def test_a_part_without_a_place_is_an_error(tmp_path):
    (tmp_path / "collectives.json").write_text(json.dumps(made_up()))
    with pytest.raises(ValueError, match="0 places for 'reduced'"):
        pod_page.filled("", tmp_path)


def test_an_unknown_network_is_refused(tmp_path, capsys):
    out = tmp_path / "no.json"
    assert collectives.main(["--networks", "ResNet-19", f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--networks 'ResNet-19'" in line and not out.exists()


def test_collectives_of_both_runners_are_as_expected():
    """The committed result: what was expected is what is reduced, and no more."""
    result = json.loads((RESULTS / "collectives.json").read_text())
    assert set(result["networks"]) == set(collectives.NETWORKS)
    for places in result["networks"].values():
        scalars = 4 * places["pmap"]["scalars"]
        expected = sum(places["pmap"]["expected"].values())
        sent = {k: v["bytes"]["all-reduce"]["bytes"] for k, v in places.items()}
        assert set(places["pmap"]["bytes"]) == set(places["jit"]["bytes"])
        assert scalars <= 16 and 0.999 * expected < sent["pmap"] <= expected + scalars
        assert 0.99 * expected < sent["jit"] <= sent["pmap"] + 16
