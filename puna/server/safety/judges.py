"""Which policy a call is held to, and who judges it: guard models that the server has, and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from puna.core import BadInput, BadValue, closest
from puna.safety.policy import GUARD, Policies, Policy
from puna.safety.verdict import Classifier
from puna.server.safety.conversation import Conversation
from puna.server.safety.guards import Beside, Caller, ServedGuard
from puna.server.safety.screen import SafetyUnavailable, Screen
from puna.server.served import Models


class Judges:
    """Of one server. Classifiers that are no models of it are made once, when it starts."""

    def __init__(
        self, policies: Policies, models: Models, make: Callable[[str], Classifier], beside: Beside
    ) -> None:
        """`make` gives other classifiers than guards. Raises what it raises."""
        self._policies = policies
        self._models = models
        self._beside = beside
        self._made: Mapping[str, Classifier] = {spec: make(spec) for spec in policies.others}

    def policy(self, name: str | None) -> Policy | None:
        """Raises SafetyUnavailable where a key names one that this server does not have."""
        try:
            return self._policies.named(name)
        except BadValue as error:
            raise SafetyUnavailable(
                f"this key is held to a safety policy that this server does not have; {error}"
            ) from None

    def screen(
        self,
        policy: Policy,
        caller: Caller,
        conversations: Sequence[Conversation],
        prompt_of: Sequence[int],
        block: Callable[[int], None],
    ) -> Screen:
        """The checks of a call."""
        judges = (self._of(policy.input, caller), self._of(policy.output, caller))
        return Screen(policy, judges, conversations, prompt_of, block)

    def _of(self, specs: Sequence[str], caller: Caller) -> list[Classifier]:
        return [
            ServedGuard(self._models, spec.removeprefix(GUARD), caller, self._beside)
            if spec.startswith(GUARD)
            else self._made[spec]
            for spec in specs
        ]


def check_guards(policies: Policies, served: Sequence[str]) -> None:
    """Raise BadInput for guards that are none of the models that a server has."""
    for name in policies.guards:
        if name not in served:
            raise BadInput(
                f"a safety policy asks {GUARD}{name}, but no model {name!r} is served"
                f"{closest(name, list(served))}; serve it beside the others"
            )
