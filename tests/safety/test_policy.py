"""Files of safety policies: what is wrong in one is said by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.core import BadInput
from puna.safety.policy import Policy, read_policies
from puna.safety.verdict import Verdict


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(
        'default = "a"\n[[policy]]\nname = "a"\ninput = ["guard:g", "scan:hidden"]\nthreshold = 1\n'
        '[[policy]]\nname = "b"\noutput = ["guard:h", "guard:g"]\naction = "report"\ntimeout = 2\n'
    )
    found = read_policies(path)
    assert found.guards == ["g", "h"]
    assert found.others == ["scan:hidden"]
    assert found.named(None) == found.named("a") == Policy("a", ("guard:g", "scan:hidden"), threshold=1)
    assert found.named("b") == Policy("b", (), ("guard:h", "guard:g"), "report", timeout=2)
    with pytest.raises(BadInput, match="there is no safety policy 'c'"):
        found.named("c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "must be a readable TOML file"),
        ("", "must have tables"),
        ("policies = 1", "there is no setting 'policies'; did you mean 'policy'"),
        ("[[policy]]", "policy 1 needs name"),
        ('[[policy]]\nname = ""', "name must be a text"),
        ('[[policy]]\nname = "a"\ninputs = []', "there is no field 'inputs'; did you mean 'input'"),
        ('[[policy]]\nname = "a"\ninput = "guard:g"', "input must be a list of texts"),
        ('[[policy]]\nname = "a"\noutput = [1]', "output must be a list of texts"),
        ('[[policy]]\nname = "a"\naction = "drop"', "action must be one of block, report, found 'drop'"),
        ('[[policy]]\nname = "a"\non_error = true', "on_error must be one of block, pass, found True"),
        ('[[policy]]\nname = "a"\nthreshold = 1.5', "threshold must be a number from 0 to 1, found 1.5"),
        ('[[policy]]\nname = "a"\nthreshold = nan', "threshold must be a number"),
        ('[[policy]]\nname = "a"\nwindow = 0', "window must be a whole number from 1"),
        ('[[policy]]\nname = "a"\nwindow = 1.0', "window must be a whole number"),
        ('[[policy]]\nname = "a"\ntimeout = 0', "timeout must be a number from 0.01"),
        ('[[policy]]\nname = "a"', "needs input or output; one that checks nothing says"),
        ('[[policy]]\nname = "a"\ninput = []\n' * 2, "two policies 'a'"),
        ('default = "b"\n[[policy]]\nname = "a"\ninput = []', "default must be one of a, found 'b'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said) as error:
        read_policies(path)
    assert str(path) in str(error.value)
    assert str(error.value).count("\n") <= 1


def test_thresholds_and_categories_decide_what_counts() -> None:
    unsure = Verdict(False, 0.4, ())
    hate = Verdict(True, 0.9, ("hate",))
    assert not Policy("p").counts(unsure)
    assert Policy("p", threshold=0.4).counts(unsure)
    assert Policy("p", categories=("hate", "privacy")).counts(hate)
    assert not Policy("p", categories=("privacy",)).counts(hate)
    assert Policy("p", categories=("privacy",)).counts(Verdict(True, 1.0))  # of no category: it might be any
