"""What a Jetson tells, on a tree of files like the one an Orin Nano with JetPack 6.2 has."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeda.errors import MachineError
from edgeda.profiling import Extras, profile_model
from edgeda.profiling.jetson import jetson_state
from edgeda.profiling.machine import machine, machine_line
from edgeda.profiling.power import PowerMeter, Rail, find_rails, parse_tegrastats, summarize_power
from tests.onnx_models import small_classifier

DPKG = """Package: nvidia-jetpack
Status: install ok installed
Version: 6.2+b77

Package: tensorrt
Status: deinstall ok config-files
Version: 8.6.2.3-1+cuda12.2

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: libnvinfer-dev
Status: install ok installed
Version: 1:99
"""
HWMON = "sys/class/hwmon/hwmon1"
FILES = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\x00",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "var/lib/dpkg/status": DPKG,
    "var/lib/nvpmodel/status": "pmode:0001 fmode:fanNull\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1344000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1344000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "49812\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "51000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    f"{HWMON}/name": "ina3221\n",
    f"{HWMON}/in1_label": "VDD_IN\n",
    f"{HWMON}/in1_input": "5000\n",
    f"{HWMON}/curr1_input": "1200\n",
    f"{HWMON}/in2_label": "VDD_CPU_GPU_CV\n",
    f"{HWMON}/in2_input": "5000\n",
    f"{HWMON}/curr2_input": "400\n",
    f"{HWMON}/in3_label": "NC\n",
    f"{HWMON}/in3_input": "0\n",
    f"{HWMON}/curr3_input": "0\n",
    f"{HWMON}/in7_label": "sum of shunt voltages\n",
    f"{HWMON}/in7_input": "1\n",
    "sys/class/hwmon/hwmon0/name": "tmp451\n",
    "sys/class/hwmon/hwmon0/in1_label": "VDD_NOT_A_POWER_SENSOR\n",
}


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """The root of its file system."""
    root = tmp_path / "orin"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_an_orin_tells(orin: Path) -> None:
    state = jetson_state(orin)
    assert state == {
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "tensorrt": "10.3.0.30",  # the package that is installed, not the one that was removed
        "power_mode": {"id": 1, "name": "25W"},
        "clocks": {
            "cpu": {"cur_mhz": 1344, "min_mhz": 729.6, "max_mhz": 1344},
            "gpu": {"cur_mhz": 306, "min_mhz": 306, "max_mhz": 918},
        },
        "pinned": False,
        "temperature_c": {"cpu-thermal": pytest.approx(49.812), "gpu-thermal": 51},
    }


def test_it_is_part_of_the_machine_and_of_its_line(orin: Path) -> None:
    found = machine(orin)
    assert (found["power_mode"], found["frequency_mhz"]) == ("25W", 1344)
    line = machine_line(found)
    for word in ("NVIDIA Jetson Orin Nano", "JetPack 6.2", "L4T 36.4.3", "power mode 25W", "not pinned", "51 degrees"):
        assert word in line


def test_jetson_clocks_are_seen(orin: Path) -> None:
    for name in ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "sys/class/devfreq/17000000.gpu/min_freq"):
        (orin / name).write_text((orin / name.replace("min_freq", "max_freq")).read_text())
    state = jetson_state(orin)
    assert state is not None
    assert state["pinned"] is True


def test_a_bare_tree_and_another_machine(tmp_path: Path) -> None:
    assert jetson_state(tmp_path) is None
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Thor\x00")
    state = jetson_state(tmp_path)
    assert state is not None
    assert not any(state.values())
    assert "None" not in machine_line(machine(tmp_path))


def test_rails_are_volts_times_amperes_and_the_unconnected_left_out(orin: Path) -> None:
    assert {rail.name: rail.watts() for rail in find_rails(orin)} == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0}


def test_energy_is_mean_power_times_time() -> None:
    """2 W for a second, then a ramp to 6 W in the next: a mean of 3 W, also when readings come unevenly."""
    samples = [
        (0.0, {"VDD_IN": 2.0, "CPU": 1.0}),
        (1.0, {"VDD_IN": 2.0, "CPU": 1.0}),
        (2.0, {"VDD_IN": 6.0, "CPU": 1.0}),
    ]
    found = summarize_power(samples, images=10, wall_s=2.5, source="INA3221")
    assert found["mean_w"] == pytest.approx(3.0)
    assert found["max_w"] == 6.0
    assert found["energy_j"] == pytest.approx(7.5)
    assert found["energy_mj_per_image"] == pytest.approx(750)
    assert found["rails_w"]["CPU"] == pytest.approx(1.0)


def test_without_a_rail_for_the_whole_module_rails_are_added() -> None:
    agx = {"VDD_GPU_SOC": 4.0, "VDD_CPU_CV": 1.5, "VIN_SYS_5V0": 3.0}
    assert summarize_power([(0.0, agx)], 1, 1.0, "INA3221")["mean_w"] == pytest.approx(8.5)
    assert summarize_power([], 1, 1.0, "INA3221")["energy_j"] is None


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 2448/7620MB CPU [3%@729] cpu@48.5C VDD_IN 4056mW/4012mW VDD_SOC 1100mW/1000mW",
         {"VDD_IN": 4.056, "VDD_SOC": 1.1}),
        ("RAM 1/2MB GR3D_FREQ 0% POM_5V_IN 1900/1911 POM_5V_GPU 40/40", {"POM_5V_IN": 1.9, "POM_5V_GPU": 0.04}),
        ("no power here", {}),
    ],
)  # fmt: skip
def test_lines_of_tegrastats(line: str, watts: dict[str, float]) -> None:
    assert parse_tegrastats(line) == pytest.approx(watts)


def test_power_during_a_measurement(orin: Path, tmp_path: Path) -> None:
    path = small_classifier(tmp_path / "small.onnx")
    extras = Extras(power=True, root=orin)
    (row,) = profile_model(str(path), engines=["onnxruntime"], threads=1, budget_s=0.2, extras=extras)
    assert row.power is not None
    assert row.power["source"] == "INA3221"
    assert row.power["mean_w"] == pytest.approx(6.0)
    assert row.images_per_s is not None
    assert row.energy_mj_per_image == pytest.approx(1e3 * 6.0 / row.images_per_s)


def test_tegrastats_where_the_sensors_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "tegrastats"
    command.write_text("#!/bin/sh\nwhile :; do echo 'VDD_IN 4000mW/3000mW VDD_SOC 1000mW/1000mW'; sleep 0.02; done\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with PowerMeter(tmp_path) as meter:
        while not meter.summary(1, 1.0)["samples"]:
            pass
    found = meter.summary(images=2, wall_s=3.0)
    assert (found["source"], found["mean_w"], found["energy_j"]) == ("tegrastats", pytest.approx(4), pytest.approx(12))


def test_what_ends_the_thread_is_raised(orin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(rail: Rail) -> float:
        raise SystemExit(7)

    meter = PowerMeter(orin)  # which looks once whether the sensors answer
    monkeypatch.setattr(Rail, "watts", gone)
    with meter:
        pass
    with pytest.raises(SystemExit, match="7"):
        meter.summary(1, 1.0)


def test_no_sensor_is_said_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MachineError, match="no power sensor"):
        PowerMeter(tmp_path)
