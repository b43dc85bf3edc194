"""Anything that can happen to the daemon, in any order, on the in-memory kernel: after every step the promises hold.

What once went wrong is kept in tests/data/machine, a story a file: the deeds in their order with what was drawn for them.
A failure prints its story in that form. LIMITERD_MACHINE_EXAMPLES and LIMITERD_MACHINE_STEPS lengthen the run by hand.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from limiterd.core.commands import pause, release_all, resume
from limiterd.core.errors import ConfigError, EnvironmentFault, PeerError
from limiterd.core.limit_state import HOLDING
from limiterd.core.model import (
    CLASS_LIMIT,
    SECOND,
    Action,
    ActionKind,
    HtbClass,
    Link,
    Override,
    OverrideAction,
    Phase,
    PolicyMode,
    TcActual,
)
from tests.core.promises import SETTLED_TICKS, Promises
from tests.core.states import BFIFO, PFIFO, foreign_deeds
from tests.explore import STORY
from tests.premises import Premises
from tests.world import MBIT, Died

STORIES: Final = sorted((Path(__file__).parent.parent / "data" / "machine").glob("*.json"))
AT_LEAST: Final = 2_000
"""Steps in every run."""

REACHED: Final = (
    "a link fired",
    "a limit adopted",
    "a limit repaired",
    "a root taken over",
    "a root put back",
    "an override applies",
    "the daemon died in the middle of a plan",
)
"""What the stories come to, one or the other; chance mostly does as well."""

NAMES: Final = ("eth0", "eth1", "lan0")
_DETECT: Final = "threshold: 100mbit, window: 2s, slice: 500ms"
_FAIR: Final = '{{name: {name}, interfaces: ["eth*"], detect: {{{detect}}}, limit: {{rate: {rate}{limit}}}{more}}}'
_AUTO: Final = "release: {mode: auto, min_hold: 5s, max_hold: 60s, quiet_for: 3s, forget_after: 1000s}"
_LAN: Final = f'  - {{name: lan, interfaces: ["lan*"], detect: {{{_DETECT}}}, limit: {{rate: 20mbit}}, {_AUTO}}}'


def _policies(**changes: str) -> str:
    plain = {"name": "fair-use", "detect": _DETECT, "rate": "20mbit", "limit": "", "more": ""}
    return f"  - {_FAIR.format(**(plain | changes))}\n{_LAN}"


CONFIGURATIONS: Final = (
    _policies(),
    _policies(rate="30mbit"),
    _policies(detect=f"{_DETECT}, guard: {{mode: enforce, burst: 100mbit}}"),
    _policies(detect="threshold: 200mbit, window: 3s, slice: 500ms"),
    _policies(more=", mode: observe"),
    _LAN,
    _policies(name="renamed"),
    _policies(more=", foreign_qdisc: takeover"),
    _policies(limit=", lifeline: {share: 10%, match: [{protocol: tcp, port: 22}]}, exempt: [{to: 10.0.0.0/8}]"),
    _policies(more=f", {_AUTO}"),
)
TAKEOVER: Final = 7
"""The configuration that takes foreign roots over."""
BROKEN: Final = (
    "  - {name: a, interfaces: [eth0], detect: {threshold: 100mbps}}",
    "  - {name: a, interfaces: [eth0], limit: {rate: 2gbit}}",
    "  - {name: a, interfaces: [eth0], mode: enforced}",
    "  - {name: a",
)
GRANTS: Final = (
    Override("A", ("eth0",), OverrideAction.EXEMPT, 0, "ops", "why"),
    Override("B", ("eth0",), OverrideAction.LIMIT, 0, "ops", "why", limit_bps=40 * MBIT),
    Override("C", ("eth0",), OverrideAction.LIMIT, 0, "ops", "why", threshold_bps=300 * MBIT),
    Override("D", ("*",), OverrideAction.EXEMPT, None, "ops", "why"),
    Override("E", ("*",), OverrideAction.LIMIT, 0, "ops", "why", threshold_bps=300 * MBIT, limit_bps=60 * MBIT),
)
ERRORS: Final = (errno.ENOMEM, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENODEV)
DEEDS: Final = len(foreign_deeds(Link(1, "x")))

present = st.sampled_from(("eth0", "eth0", "eth0", "eth1", "lan0"))
seldom = st.sampled_from((False, False, False, True))
deeds = st.integers(0, DEEDS - 1)


def plain(actual: TcActual) -> object:
    """The limit as it stands, but for the filters' handles, which the kernel gives anew."""
    tree = actual.tree
    if tree is None:
        return actual.root
    filters = sorted(str(replace(item, handle=0)) for item in tree.filters)
    return tree.default_classid, [_comparable(item) for item in tree.classes], tree.leaves, filters, actual.classes_with_children


def _comparable(item: HtbClass) -> HtbClass:
    """In a class that has others under it the kernel keeps quantum and prio as they were made."""
    return replace(item, quantum_bytes=0, prio=0) if item.classid == CLASS_LIMIT else item


def deed(**drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A rule that is counted, noted, and followed by the promises; the daemon may die in the middle of it."""

    def made(act: Callable[..., None]) -> Callable[..., None]:
        @wraps(act)
        def done(self: Machine, **values: object) -> None:
            Machine.steps += 1
            self.story.append([act.__name__, values])
            try:
                try:
                    act(self, **values)
                except Died:
                    Machine.reached["the daemon died in the middle of a plan"] += 1
                    self.start()
                self.promises.check()
            except (Exception, pytest.fail.Exception) as error:
                error.add_note(f"{STORY}{json.dumps(self.story)}")
                raise

        ruled: Callable[..., None] = rule(**drawn)(done)  # type: ignore[call-overload]  # these are no bundles
        return ruled

    return made


class Machine(RuleBasedStateMachine):
    """One machine with up to three links, its daemon, its operators and its enemies."""

    steps: ClassVar[int] = 0
    reached: ClassVar[Counter[str]] = Counter()
    """How often a run came to what is hard to come to."""

    @initialize(number=st.sampled_from((0, 0, TAKEOVER, len(CONFIGURATIONS) - 1)))
    def begin(self, number: int) -> None:
        """A machine with one link."""
        self.world = Premises(policies=CONFIGURATIONS[number])
        self.promises = Promises(self.world, Machine.reached)
        self.story: list[list[object]] = [["begin", {"number": number}]]
        self.taken = 10

    def teardown(self) -> None:
        """Remove its files."""
        if hasattr(self, "world"):
            self.world.close()

    def names(self) -> list[str]:
        """The links that are there."""
        return [link.name for link in self.world.links]

    def changed(self, which: str, **properties: Any) -> None:
        """A link's own properties are others now."""
        links = self.world.links
        self.world.links = tuple(replace(link, **properties) if link.name == which else link for link in links)
        self.promises.disturb()

    # ---- the world ----

    @deed(name=present, mbit=st.sampled_from([0, 1, 15, 90, 150, 300, 500]))
    def offer(self, name: str, mbit: int) -> None:
        """Traffic changes."""
        if name in self.names():
            self.world.kernel.offer(self.world.link(name).ifindex, mbit * MBIT)

    @deed(ticks=st.sampled_from([1, 3, 10, 25, 40]))
    def tick(self, ticks: int) -> None:
        """Time passes, sampled."""
        self.promises.tick(ticks)

    @deed(name=present)
    def fire(self, name: str) -> None:
        """A link is offered too much for long enough: where nothing speaks against it, it is limited for it.

        A kernel that fell silent before a release still holds the limit back: then the link never sends too much.
        """
        if name not in self.names():
            return
        ifindex = self.world.link(name).ifindex
        applies = self.world.state.effective.get(name)
        free = (
            applies is not None
            and self.promises.seen(self.world.link(name))
            and applies.policy.mode is PolicyMode.ENFORCE
            and applies.detect.threshold_bps == 100 * MBIT
            and (name not in self.world.state.limit_states or self.world.state.limit_states[name].stage in HOLDING)
            and not (self.world.state.paused or self.world.blind or self.world.drops)
            and not self.world.controller.rules.overrides
        )
        kernel, ticks = self.world.kernel, 27
        kernel.offer(ifindex, 150 * MBIT)
        sent_bytes = -kernel.links[ifindex].tx_bytes
        self.promises.tick(ticks)
        sent_bytes += kernel.links[ifindex].tx_bytes
        if free:
            fired = name in self.world.state.limit_states
            held_back = kernel.silent and 8 * sent_bytes < 100 * MBIT * ticks // 10
            Machine.reached["a link fired"] += fired
            assert fired or held_back

    def hush(self) -> None:
        """Nobody sends any more; that events were lost becomes known."""
        for link in self.world.links:
            self.world.kernel.offer(link.ifindex, 0)
        self.world.overrun, self.promises.unheard = True, False
        self.world.controller.take_events()

    @deed()
    def calm(self) -> None:
        """Nobody sends for a while."""
        self.hush()
        self.promises.tick(140)

    @deed()
    def patience(self) -> None:
        """Nobody sends, and the longest pauses between two tries pass."""
        self.hush()
        for _ in range(3):
            self.world.pass_time(61 * SECOND)
            self.promises.tick(SETTLED_TICKS)
        self.promises.calm_since -= 3 * 610
        self.promises.patient = True

    @deed(seconds=st.sampled_from([1, 4, 30, 3600]), wall=st.sampled_from([1, 1, 1, -2, 24]))
    def gap(self, seconds: int, wall: int) -> None:
        """Time passes unobserved; the wall clock may step another way."""
        self.world.pass_time(seconds * SECOND, wall_ns=seconds * wall * SECOND)

    @deed(name=present, same_mac=st.booleans())
    def appear(self, name: str, same_mac: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """A link appears, with its usual MAC or another."""
        if name not in self.names():
            self.taken += 1
            mac = f"02:00:00:00:01:{NAMES.index(name):02x}" if same_mac else f"02:00:00:00:02:{self.taken % 256:02x}"
            self.world.add(self.taken, name, mac=mac)
            self.promises.disturb()

    @deed(name=present)
    def vanish(self, name: str) -> None:
        """A link goes."""
        if name in self.names():
            self.forget(self.world.remove(name).ifindex)

    @deed(name=present, same_mac=st.booleans())
    def born_again(self, name: str, same_mac: bool) -> None:  # noqa: FBT001 - likewise
        """A link is made anew between two samples, and gets its old ifindex."""
        if name in self.names():
            old = self.world.remove(name)
            mistakable = same_mac and not self.promises.seen(old)
            self.forget(old.ifindex, roots=not mistakable)
            self.taken += 1
            mac = old.mac if same_mac else f"02:00:00:00:03:{self.taken % 256:02x}"
            self.world.add(old.ifindex, name, mac=mac, incarnation=old.incarnation + 1)

    def forget(self, ifindex: int, *, roots: bool = True) -> None:
        """The link and all that was on it are gone; roots False: unknown to a daemon that just started, so it restores one."""
        promises = self.promises
        for known in (promises.roots, promises.executor, promises.last, *((promises.saved, promises.owed) if roots else ())):
            known.pop(ifindex, None)
        self.promises.ours.discard(ifindex)
        self.promises.disturb()

    @deed(name=present, new=present)
    def rename(self, name: str, new: str) -> None:
        """A link gets another name."""
        if name in self.names() and new not in self.names():
            self.changed(name, name=new)

    @deed(name=present, last=st.integers(0, 3))
    def change_mac(self, name: str, last: int) -> None:
        """A link gets another hardware address."""
        if name in self.names():
            self.changed(name, mac=f"02:00:00:00:04:{last:02x}")

    @deed(name=present, step=st.sampled_from([-(2**62), -(2**32), 2**32, 2**40]))
    def counter_jumps(self, name: str, step: int) -> None:
        """A driver resets a counter, or makes one up."""
        if name in self.names():
            link = self.world.kernel.links[self.world.link(name).ifindex]
            link.tx_bytes = max(0, link.tx_bytes + step)

    # ---- foreign hands ----

    def hand(self, name: str, actions: list[Action], *, seen: bool) -> None:
        """Somebody else acts on a link; the event may get lost."""
        ifindex = self.world.link(name).ifindex
        self.world.kernel.by_hand(actions)
        self.promises.touched(ifindex)
        if seen:
            self.world.touch(name)
        self.promises.unheard |= not seen

    @deed(name=present, which=deeds, seen=st.booleans())
    def meddle(self, name: str, which: int, seen: bool) -> None:  # noqa: FBT001 - likewise
        """A foreign hand in tc."""
        if name in self.names():
            self.hand(name, [foreign_deeds(self.world.link(name))[which]], seen=seen)

    @deed(name=present, which=st.sampled_from([0, 1, 2]), seen=st.booleans())
    def replace_root(self, name: str, which: int, seen: bool) -> None:  # noqa: FBT001 - likewise
        """Whatever the link's root is, somebody puts another there, or none."""
        if name not in self.names():
            return
        ifindex = self.world.link(name).ifindex
        root = self.world.kernel.shows(ifindex).root
        actions = [Action(ActionKind.DELETE_ROOT, ifindex, name, root.handle)] if root is not None and root.handle else []
        if which:
            actions.append(Action(ActionKind.RESTORE_ROOT, ifindex, name, (PFIFO, BFIFO)[which - 1]))
        self.hand(name, actions, seen=seen)

    @deed(name=present, which=deeds, seen=st.booleans())
    def promise_6_interference_is_repaired(self, name: str, which: int, seen: bool) -> None:  # noqa: FBT001 - likewise
        """A limit is changed by others: put right at its event or within a read-back period, and counted; or it is a fault."""
        if self.phase(name) in {Phase.CONFORMING, Phase.PENDING}:
            with self.operating():
                self.world.limit(name, force=True)
        if self.phase(name) is not Phase.LIMITED:
            return
        link = self.world.link(name)
        if not self.promises.quiet(link.ifindex):
            self.promises.tick(SETTLED_TICKS)
        if self.phase(name) is not Phase.LIMITED:
            return
        applies, able = self.world.state.effective[name], self.world.state.abilities
        before, counted = self.world.kernel.shows(link.ifindex), self.world.state.counters.drift_repairs[name]
        self.hand(name, [foreign_deeds(link)[which]], seen=False)
        harmed = plain(self.world.kernel.shows(link.ifindex)) != plain(before)
        if seen and not self.world.deaf:
            self.world.touch(name)
        else:
            self.promises.tick(SETTLED_TICKS)
        unchanged = self.world.state.effective.get(name) == applies and self.world.state.abilities == able
        if self.phase(name) is Phase.LIMITED and unchanged:
            assert plain(self.world.kernel.shows(link.ifindex)) == plain(before)
            assert (self.world.state.counters.drift_repairs[name] > counted) == harmed
            Machine.reached["a limit repaired"] += harmed

    def phase(self, name: str) -> Phase | None:
        """What status says of a link that is there."""
        return next((view.phase for view in self.promises.views() if view.interface == name), None)

    @deed(name=present, which=st.sampled_from([1, 2]), for_long=st.booleans())
    def take_over(self, name: str, which: int, for_long: bool) -> None:  # noqa: FBT001 - likewise
        """Somebody's root stands on a link without a limit when one becomes due; an operator may change their mind."""
        if self.phase(name) not in {Phase.CONFORMING, Phase.PENDING}:
            return
        self.world.configure(CONFIGURATIONS[TAKEOVER])
        self.follow()
        ifindex = self.world.link(name).ifindex
        self.hand(name, [Action(ActionKind.RESTORE_ROOT, ifindex, name, (PFIFO, BFIFO)[which - 1])], seen=True)
        self.promises.tick(SETTLED_TICKS)
        with self.operating():
            self.world.limit(name, force=True)
            if not for_long:
                self.world.release(name)
                self.promises.tick(SETTLED_TICKS)

    # ---- what fails ----

    @deed(step=st.integers(0, 10), number=st.sampled_from(ERRORS))
    def refuse(self, step: int, number: int) -> None:
        """The kernel will refuse one of the next steps."""
        self.world.kernel.refuse(step, number)
        self.promises.refusals += 1
        self.promises.disturb()

    @deed(silent=seldom)
    def fall_silent(self, silent: bool) -> None:  # noqa: FBT001 - likewise
        """The kernel stops answering, or answers again."""
        if silent != self.world.kernel.silent:
            self.promises.silent_since = self.promises.ticks if silent else None
        self.world.kernel.silent = silent
        self.promises.disturb()

    @deed(full=seldom, slow=st.booleans())
    def change_disk(self, full: bool, slow: bool) -> None:  # noqa: FBT001 - likewise
        """The disk fills up, gets slow, or is well again."""
        self.world.store.full, self.world.store.slow = full, slow
        self.promises.disturb()

    @deed(blind=seldom, deaf=seldom, drops=seldom, overrun=seldom)
    def lose_sight(self, blind: bool, deaf: bool, drops: bool, overrun: bool) -> None:  # noqa: FBT001 - likewise
        """Samples or events fail, or are lost."""
        self.world.blind, self.world.deaf, self.world.drops, self.world.overrun = blind, deaf, drops, overrun
        self.promises.disturb()
        if overrun or deaf:
            self.world.controller.take_events()

    # ---- configuration and overrides ----

    def follow(self) -> None:
        """Reload; what the operator wrote may contradict itself."""
        self.promises.disturb()
        with contextlib.suppress(ConfigError):
            self.world.follow()

    @deed(number=st.integers(0, len(CONFIGURATIONS) - 1))
    def configure(self, number: int) -> None:
        """Another configuration."""
        self.world.configure(CONFIGURATIONS[number])
        self.follow()

    @deed(which=st.integers(0, len(BROKEN) + 1))
    def promise_4_an_invalid_reload_changes_nothing(self, which: int) -> None:
        """A file that is broken, or empty, or wants a restart: nothing changes, and file, line, column and reason are named."""
        world = self.world
        good = world.policies
        before = (world.controller.rules, world.state.journal(), len(world.kernel.sent), world.store.data)
        if which < len(BROKEN):
            world.configure(BROKEN[which])
        elif which == len(BROKEN):
            world.configure(good, state="/elsewhere")
        else:
            world.path.write_text("")
        with pytest.raises(ConfigError) as caught:
            world.follow()
        world.configure(good)
        assert re.search(rf"{re.escape(str(world.path))}:\d+:\d+: .+: .+", str(caught.value))
        assert before == (world.controller.rules, world.state.journal(), len(world.kernel.sent), world.store.data)
        assert world.controller.rules is before[0]
        assert world.status().config_error == str(caught.value)

    @deed(number=st.integers(0, len(CONFIGURATIONS) - 1))
    def promise_4_a_refused_reload_changes_nothing(self, number: int) -> None:
        """The machine refuses what the files want: nothing changes, and status says so."""
        world, good = self.world, self.world.policies
        before = (world.controller.rules, world.state.journal(), len(world.kernel.sent))
        world.configure(CONFIGURATIONS[number])
        world.stubborn = True
        with pytest.raises((EnvironmentFault, ConfigError)):
            world.follow()
        world.stubborn = False
        world.configure(good)
        assert before == (world.controller.rules, world.state.journal(), len(world.kernel.sent))
        assert world.status().config_error

    @deed(
        which=st.integers(0, len(GRANTS) - 1),
        own=st.booleans(),
        begins=st.sampled_from([None, None, -5, 5]),
        ends=st.sampled_from([-5, 3, 30, 3600]),
    )
    def promise_9_an_override_takes_effect(self, which: int, own: bool, begins: int | None, ends: int) -> None:  # noqa: FBT001
        """A record is granted, by the operator or through the daemon: within a second what it says is so."""
        wall_ns, record = self.world.now.wall_ns, GRANTS[which]
        record = replace(
            record,
            not_before_wall_ns=None if begins is None else wall_ns + begins * SECOND,
            expires_wall_ns=record.expires_wall_ns
            if record.expires_wall_ns is None
            else wall_ns + max(ends, (begins or 0) + 1) * SECOND,
        )
        try:
            self.world.grant(record, own=own)
            self.world.follow()
        except (ConfigError, PeerError):
            self.world.withdraw()
            self.world.follow()
        self.promises.disturb()
        hindered = self.world.kernel.silent or self.promises.refusals or self.world.blind
        if hindered or any(not self.promises.quiet(link.ifindex) for link in self.world.links):
            return
        since = dict(self.world.state.effective)
        self.promises.tick(10)
        for view in self.promises.views():
            applies = self.world.state.effective[view.interface]
            actual = self.world.kernel.shows(view.ifindex)
            if view.phase is Phase.FAULT or applies.override is None or since.get(view.interface) != applies:
                continue
            Machine.reached["an override applies"] += 1
            if applies.exempt:
                assert not actual.ours, view
            elif actual.tree is not None and applies.override.limit_bps is not None:
                assert actual.tree.rate_bps == applies.override.limit_bps, view

    @deed()
    def withdraw(self) -> None:
        """Every record is taken back."""
        self.world.withdraw()
        self.follow()

    # ---- death ----

    def start(self) -> None:
        """The daemon starts again on what the disk holds."""
        self.world.kernel.lives = None
        for link in self.world.links:
            if not self.promises.seen(link):  # who is renamed while no daemon runs is another link, to which nothing is owed
                self.promises.roots.pop(link.ifindex, None)
                self.promises.owed.pop(link.ifindex, None)
        self.promises.restarted()
        self.promises.disturb()
        self.world.boot()
        self.promises.looked = self.world.now

    @deed(name=present)
    def promise_5_a_restart_touches_nothing(self, name: str) -> None:
        """The daemon is killed between two turns and starts again: limits that stand are adopted as they are."""
        world, promises = self.world, self.promises
        with self.operating():
            world.limit(name, force=True)
        promises.tick()
        settled = (
            promises.looked == world.now
            and all(promises.seen(link) and promises.quiet(link.ifindex) for link in world.links)
            and all(case.stage == "standing" and case.blocker is None for case in world.state.limit_states.values())
            and not (world.kernel.silent or world.blind or world.drops or world.store.full or world.store.waiting)
            and world.state.abilities == world.kernel.abilities()
        )
        sent = len(world.kernel.sent)
        limited = {view.interface: view for view in promises.views() if view.phase is Phase.LIMITED}
        self.start()
        if settled:
            Machine.reached["a limit adopted"] += bool(limited)
            assert len(world.kernel.sent) == sent
            for interface, view in limited.items():
                after = next(found for found in promises.views() if found.interface == interface)
                assert (after.phase, after.limit_bps, after.since_wall_ns, after.reason, after.strikes) == (
                    (view.phase, view.limit_bps, view.since_wall_ns, view.reason, view.strikes)
                ), after

    @deed(name=present, steps=st.integers(0, 12), act=st.sampled_from(["", "limit", "release", "withdraw"]))
    def die_within(self, name: str, steps: int, act: str) -> None:
        """The daemon will die in the middle of what it does next, after so many steps."""
        self.promises.disturb()
        self.world.kernel.lives = steps
        with self.operating():
            if act == "limit":
                self.world.limit(name, force=True)
            elif act == "release":
                self.world.release(name)
                self.promises.tick(8)
            elif act:
                self.world.withdraw()
                self.world.follow()

    # ---- operators ----

    @contextlib.contextmanager
    def operating(self) -> Any:
        """An operator's command is at work, and may be refused."""
        self.promises.disturb()
        self.promises.operator = True
        try:
            with contextlib.suppress(PeerError):
                yield
        finally:
            self.promises.operator = False

    @deed(name=present, rate=st.sampled_from([None, 5]), force=st.booleans())
    def limit(self, name: str, rate: int | None, force: bool) -> None:  # noqa: FBT001 - likewise
        """Limit by hand, or be refused."""
        with self.operating():
            self.world.limit(name, rate and rate * MBIT, force=force)

    @deed(name=present)
    def release(self, name: str) -> None:
        """Release by hand, or be refused."""
        with self.operating():
            self.world.release(name)

    @deed()
    def release_all(self) -> None:
        """Release every link by hand, or be refused."""
        with self.operating():
            self.world.command(lambda state, now: release_all(state, now, reason="test", by="root"))

    @deed(on=seldom)
    def pause(self, on: bool) -> None:  # noqa: FBT001 - likewise
        """Pause or resume, or be refused."""
        with self.operating():
            self.world.command(lambda state, now: (pause if on else resume)(state, now, reason="", by="root"))


Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("LIMITERD_MACHINE_EXAMPLES", "100")),
    stateful_step_count=int(os.environ.get("LIMITERD_MACHINE_STEPS", "50")),
    deadline=None,
    phases=set(Phases) - {Phases.explain},  # it traces every line
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
class TestMachine(Machine.TestCase):  # type: ignore[misc,valid-type]  # hypothesis makes the class at run time
    """After anything that can happen to the daemon, in any order, the promises hold."""

    @classmethod
    def tearDownClass(cls) -> None:
        """Enough has happened."""
        assert Machine.steps >= AT_LEAST


def replay(story: list[tuple[str, dict[str, object]]]) -> None:
    """Let a machine live through a story."""
    machine = Machine()
    try:
        for name, values in story:
            getattr(machine, name)(**values)
    finally:
        machine.teardown()


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_what_once_went_wrong(path: Path) -> None:
    """A story by which a promise was once broken: it holds now."""
    replay(json.loads(path.read_text())["story"])


def test_all_that_matters_is_come_to() -> None:
    """The machine can fire, adopt, repair, take over, put back, override and die: no promise holds for want of occasion."""
    before = Machine.reached.copy()
    for path in STORIES:
        replay(json.loads(path.read_text())["story"])
    assert not [what for what in REACHED if Machine.reached[what] == before[what]]
