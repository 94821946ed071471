"""The reading of machine code by benchmarks/machine_code.py, and the code of the built library."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "machine_code.py"
if not SCRIPT.exists():
    pytest.skip("needs the sources", allow_module_level=True)
spec = importlib.util.spec_from_file_location("machine_code", SCRIPT)
machine_code = importlib.util.module_from_spec(spec)
sys.modules["machine_code"] = machine_code
spec.loader.exec_module(machine_code)

# A loop of two entries of 4 bytes, with a slow way that loops over single ones, and a short loop.
CODE = """
        Function : _Z4tileILi2EEvPf
    /*0000*/                   S2R R0, SR_TID.X ;                  /* 0x0000 */
    /*0010*/                   LDG.E.64 R2, [R4] ;
    /*0020*/               @P0 BRA 0x70 ;
    /*0030*/                   FADD R2, R2, R3 ;
    /*0040*/                   STS.128 [R0], R2 ;
    /*0050*/                   STG.E.64 [R4], R2 ;
    /*0060*/                   BRA 0xa0 ;
    /*0070*/                   FADD R2, R2, R3 ;
    /*0080*/                   STG.E [R4], R2 ;
    /*0090*/               @P1 BRA 0x70 ;
    /*00a0*/                   BRA.DIV UR4, 0x110 ;
    /*00b0*/                   IADD3 R4, R4, 0x1, RZ ;
    /*00c0*/              @!P2 BRA 0x10 ;
    /*00d0*/                   IADD3 R4, R4, 0x1, RZ ;
    /*00e0*/               @P3 BRA 0xd0 ;
    /*00f0*/                   EXIT ;
    /*0100*/                   NOP ;
    /*0110*/                   BRA 0xb0 ;
"""


def kernel(text=CODE, **facts):
    (code,) = machine_code.parse(text).values()
    return machine_code.Kernel("tile_kernel<2, float>", 40, **facts, code=code)


def test_the_hot_loop_is_the_longest_without_its_slow_ways():
    least, most = machine_code.hot_loop(kernel().code)
    assert [x.address for x in least] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0xA0, 0xB0, 0xC0]
    assert most == least


def test_what_is_counted():
    facts = machine_code.measure(kernel())
    assert facts["registers"] == 40 and facts["instructions"] == 17 and facts["entries"] == 2
    assert facts["least"] == facts["most"] == 4.5
    assert facts["arithmetic"] == 0.5 and facts["shared"] == 0.5
    assert facts["loads"] == [8] and facts["flags"] == []


@pytest.mark.parametrize(
    "line, flag",
    [
        ("STL [R1], R2", "local memory"),
        ("CALL.REL.NOINC 0x40", "calls"),
        ("MUFU.RCP R2, R3", "divides"),
        ("I2F.U64.RP R2, R3", "divides"),
        ("F2F.F16.F32 R2, R3", "single conversions"),
        ("F2F.BF16.F32 R2, R3", "single conversions"),
    ],
)
def test_what_must_not_be_there(line, flag):
    facts = machine_code.measure(kernel(CODE.replace("FADD R2, R2, R3", line, 1)))
    assert facts["flags"] == [flag]
    (fault,) = machine_code.faults({"tile_kernel<2, float>": facts}, {})
    assert fault == f"tile_kernel<2, float>: {flag}"
    assert machine_code.measure(kernel(stack=8))["flags"] == ["local memory"]


def test_growth_by_a_fifth_is_refused():
    name, facts = "tile_kernel<2, float>", machine_code.measure(kernel())
    assert machine_code.faults({name: facts}, {name: facts}) == []
    for key in ("registers", "instructions", "least", "most"):
        known = {name: {**facts, key: facts[key] / 1.19}}
        assert machine_code.faults({name: facts}, known) == []
        known = {name: {**facts, key: facts[key] / 1.21}}
        (fault,) = machine_code.faults({name: facts}, known)
        assert f"{name}: {key}: wanted at most a fifth over" in fault
    assert machine_code.faults({}, {name: facts}) == [f"{name}: it is missing"]


def test_names_are_short():
    symbol = "_ZN8fastfood4cuda12short_kernelILi3EfEEvPKT0_PS2_lNS0_9"
    assert machine_code.short_name(
        "void fastfood::cuda::(anonymous namespace)::project_kernel<8, float>"
        "(fastfood::cuda::Perturb<float>, unsigned long)"
    ) == ("project_kernel<8, float>")
    assert machine_code.demangle([symbol]) == {symbol: symbol}


def test_the_librarys_kernels_have_not_grown():
    if not machine_code.find_cuobjdump():
        pytest.skip("needs cuobjdump")
    if not machine_code.LIBRARY.exists():
        pytest.skip("needs the CUDA library")
    recorded = json.loads(machine_code.RECORD.read_text())
    assert len(recorded) > 100
    command = [sys.executable, SCRIPT, "--check", machine_code.RECORD]
    done = subprocess.run(command, capture_output=True, text=True)
    if "wanted code for sm_90" in done.stderr:
        pytest.skip("the library has no code for sm_90")
    assert done.returncode == 0, done.stderr
