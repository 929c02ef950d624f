"""Which policy a call is held to, and who judges it: guard models that the server has, and others."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from puna.core import BadInput, BadValue, closest
from puna.safety.policy import GUARD, Policies, Policy
from puna.safety.verdict import Classifier, Turn, Verdict
from puna.server.safety.conversation import Conversation
from puna.server.safety.guards import Beside, Caller, ServedGuard
from puna.server.safety.screen import SafetyUnavailable, Screen
from puna.server.served import Models

_MOST_KNOWN = 20_000  # verdicts that are remembered


class Remembered:
    """A judge that is not asked again for what it has judged: every request sends its history anew."""

    def __init__(self, judge: Classifier, known: OrderedDict[bytes, Verdict], salt: str) -> None:
        """`salt` keeps tenants apart: from the time of an answer one could learn what another one asked."""
        self.name = judge.name
        self._judge = judge
        self._known = known
        self._salt = salt

    async def judge(self, conversations: Sequence[Sequence[Turn]]) -> Sequence[Verdict]:
        keys = [self._key(turns) for turns in conversations]
        found = {key: self._known[key] for key in keys if key in self._known}
        for key in found:
            self._known.move_to_end(key)
        new = [i for i, key in enumerate(keys) if key not in found]
        if new:
            made = await self._judge.judge([conversations[i] for i in new])
            found |= {keys[i]: verdict for i, verdict in zip(new, made, strict=True)}
            self._known |= found
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return [found[key] for key in keys]

    def _key(self, turns: Sequence[Turn]) -> bytes:
        text = json.dumps([self.name, self._salt, *turns], sort_keys=True)
        return sha256(text.encode()).digest()


class Judges:
    """Of one server. Classifiers that are no models of it are made once, when it starts."""

    def __init__(
        self, policies: Policies, models: Models, make: Callable[[str], Classifier], beside: Beside
    ) -> None:
        """`make` gives other classifiers than guards. Raises what it raises."""
        self._policies = policies
        self._models = models
        self._beside = beside
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
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
        spell: Callable[[int], bytes],
    ) -> Screen:
        """The checks of a call."""
        salt = f"{caller.tenant}\0{caller.cache_salt}"
        asked = [Remembered(judge, self._known, salt) for judge in self._of(policy.input, caller)]
        judges = (asked, self._of(policy.output, caller))
        return Screen(policy, judges, conversations, prompt_of, block, spell)

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
