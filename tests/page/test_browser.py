"""The page in a real Chromium: what is seen, by mouse, keyboard and screen reader, in light and dark, of a large fleet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.browser import ARGUMENTS, chromium
from tests.page.test_door import KEYS, fleet
from tests.page.views import ShowingSolver, agent, group, large, view

playwright = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")
PROGRAM = chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium: `apt-get install chromium`, or name one in QLM_CHROMIUM"
)
Page = Any
WAIT_S = 20.0


class Shown:
    """A page that a browser shows, with the solver behind it and what went wrong in it."""

    def __init__(self, page: Page, url: str, solver: ShowingSolver) -> None:
        self.page, self.url, self.solver = page, url, solver
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._said)
        page.on("request", lambda request: self.asked.append(request.url))

    def _said(self, message: Any) -> None:
        # A browser complains of every answer that is a refusal, which is for the page to tell.
        if message.type == "error" and "status of 4" not in message.text:
            self.errors.append(message.text)

    async def open(self) -> None:
        await self.page.goto(f"{self.url}/ui")

    async def until(self, truth: str) -> Any:
        """Wait until an expression is true. The page's policy forbids to have it evaluated in there again and again."""
        async with asyncio.timeout(WAIT_S):
            while not (value := await self.page.evaluate(truth)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return value


@contextlib.asynccontextmanager
async def shown(*, scheme: str = "light", **section: Any) -> AsyncIterator[Shown]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=PROGRAM, args=[*ARGUMENTS])
        try:
            context = await browser.new_context(
                color_scheme=scheme, viewport={"width": 1300, "height": 900}
            )
            page = await context.new_page()
            async with fleet(ui={"refresh_s": 0.1}, **section) as (it, solver):
                made = Shown(page, it.url, solver)
                yield made
                assert made.errors == []
                assert all(url.startswith((it.url, "data:")) for url in made.asked)
                await page.goto("about:blank")
        finally:
            await browser.close()


async def test_queues_are_lanes_with_their_groups_in_order() -> None:
    async with shown() as it:
        first = group(1, start_s=1.0)
        second = group(2, start_s=5.0, model="other", swap_s=2.0, expected_late=3, due_in_s=3.0)
        it.solver.view = view(agent("a100-0", first, second), agent("b", ready=False))
        await it.open()
        lane = it.page.locator('.lane[data-agent="a100-0"]')
        groups = lane.locator(".group")
        await playwright.expect(groups).to_have_count(2)
        boxes = [await groups.nth(place).bounding_box() for place in range(2)]
        present = await it.page.locator(".present").bounding_box()
        assert present["x"] < boxes[0]["x"] < boxes[1]["x"]
        colours = [
            await groups.nth(place).evaluate("one => getComputedStyle(one).backgroundColor")
            for place in range(2)
        ]
        assert colours[0] != colours[1]
        await playwright.expect(lane.locator("i.swap")).to_have_count(1)
        await playwright.expect(lane.locator(".group.late")).to_have_count(1)
        await playwright.expect(lane.locator(".due.late")).to_have_count(1)
        await playwright.expect(it.page.locator(".glance")).to_contain_text("1 / 2")
        down = it.page.locator('.lane[data-agent="b"] .state')
        await playwright.expect(down).to_have_text("down")


async def test_the_present_moves_through_the_plan() -> None:
    async with shown() as it:
        await it.open()
        await it.page.locator(".group").first.wait_for()
        shift = "document.querySelector('.lanes').style.getPropertyValue('--shift')"
        value = await it.until(shift)
        await it.until(f"parseFloat({shift}) < parseFloat('{value}')")


async def test_changes_come_without_a_reload() -> None:
    async with shown() as it:
        await it.open()
        row = it.page.locator("tbody th", has_text="a100-9")
        await playwright.expect(row).to_have_count(0)
        it.solver.view = view(agent("a100-9", group(4)))
        await playwright.expect(row).to_have_count(1)
        gone = it.page.locator('.lane[data-agent="a100-0"]')
        await playwright.expect(gone).to_contain_text("gone")


async def test_it_can_be_used_from_the_keyboard_and_read_aloud() -> None:
    async with shown() as it:
        it.solver.view = view(
            agent("a", group(1), group(2, start_s=3.0)), agent("b", group(3, expected_late=2))
        )
        await it.open()
        await it.page.locator(".group").first.wait_for()
        # One stop for all queues; arrows do the rest. What is late comes first.
        await playwright.expect(it.page.locator('.group[tabindex="0"]')).to_have_count(1)
        await it.page.locator('.group[tabindex="0"]').focus()
        focused = "document.activeElement.getAttribute('data-group')"
        assert await it.page.evaluate(focused) == "3"
        for pressed, expected in (("ArrowDown", "1"), ("ArrowRight", "2"), ("ArrowUp", "3")):
            await it.page.keyboard.press(pressed)
            await it.until(f"{focused} === '{expected}'")
        words = await it.page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert "tiny, interactive, 5 waiting" in words
        assert "2 expected late" in words
        await playwright.expect(it.page.locator(".details")).to_contain_text("group 3")
        said = it.page.locator(".spoken")
        await playwright.expect(said).to_contain_text("15 requests waiting, 2 expected late")
        unnamed = await it.page.evaluate(
            """[...document.querySelectorAll('button, input, select, meter, progress, svg[role=img]')]
               .filter(one => !(one.getAttribute('aria-label') || one.labels?.length || one.textContent.trim())).length"""
        )
        assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_the_light_and_in_the_dark(scheme: str) -> None:
    async with shown(scheme=scheme) as it:
        await it.open()
        await it.page.locator(".group").first.wait_for()

        async def brightness(what: str) -> float:
            colour = await it.page.evaluate(f"getComputedStyle(document.body).{what}")
            red, green, blue = (int(part) / 255 for part in colour[4:-1].split(","))
            linear = [
                one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4
                for one in (red, green, blue)
            ]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        ground, ink = await brightness("backgroundColor"), await brightness("color")
        assert (ground < ink) is (scheme == "dark")
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 7.0
        # And by choice, whatever the system wants.
        other = "light" if scheme == "dark" else "dark"
        await it.page.get_by_label("theme").select_option(other)
        await it.until(f"document.documentElement.dataset.theme === '{other}'")
        assert (await brightness("backgroundColor") < 0.5) is (other == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_stands_in_the_way_of_who_sees_hears_or_moves_otherwise(scheme: str) -> None:
    """By axe's rules for WCAG 2.1, levels A and AA, and its best practice."""
    axe = pytest.importorskip("axe_playwright_python", reason="the dev extra has it")
    rules = Path(axe.__file__).with_name("axe.min.js").read_text()
    async with shown(scheme=scheme) as it:
        late = group(2, start_s=3.0, expected_late=2, model="other", swap_s=1.0)
        it.solver.view = view(agent("a", group(1), late), agent("b", ready=False))
        await it.open()
        await it.page.locator(".group").first.click()
        await playwright.expect(it.page.locator(".details")).to_contain_text("group")
        tools = await it.page.context.new_cdp_session(it.page)
        await tools.send("Runtime.evaluate", {"expression": rules})
        levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
        found = await it.page.evaluate(
            """levels => axe.run(document, {runOnly: levels}).then(
                 told => told.violations.map(one => [one.id, one.nodes.map(node => node.html)]))""",
            levels,
        )
        assert found == []


async def test_a_key_is_asked_for_and_kept_to_the_tab() -> None:
    async with shown(api_keys=KEYS) as it:
        await it.open()
        await it.page.get_by_label("API key").fill(KEYS["alice"]["key"])
        await it.page.get_by_role("button", name="Look on").click()
        await playwright.expect(it.page.locator(".glance")).to_contain_text("of yours wait")
        await playwright.expect(it.page.locator("#plans")).to_have_count(0)
        assert await it.page.evaluate("localStorage.getItem('qlm-key')") is None


async def test_one_request_is_told_as_a_story() -> None:
    async with shown() as it:
        await it.open()
        request = await it.page.evaluate(
            """fetch('/v1/completions', {method: 'POST', headers: {'content-type': 'application/json', 'x-qlm-async': '1'},
                 body: JSON.stringify({model: 'tiny', prompt: 'x', max_tokens: 3})}).then(one => one.json())"""
        )
        await it.page.get_by_role("button", name="List the newest").click()
        await it.page.get_by_role("button", name=request["id"]).click()
        story = it.page.locator(".story")
        await playwright.expect(story).to_contain_text("waiting")
        await playwright.expect(story.locator(".steps li")).to_have_count(1)
        await playwright.expect(story).to_contain_text("Why it waits")
        await it.page.get_by_label("id", exact=True).fill("nobody")
        await it.page.get_by_role("button", name="Show", exact=True).click()
        await playwright.expect(it.page.get_by_role("alert")).to_contain_text("nobody")


async def test_classes_plans_and_advice_are_told() -> None:
    async with shown() as it:
        await it.open()
        main = it.page.locator("main")
        await playwright.expect(main).to_contain_text("highs")
        await playwright.expect(main).to_contain_text("4.0 %")
        await playwright.expect(main).to_contain_text(
            "One more a100 beside 1 would save at most 1.0"
        )
        card = it.page.locator(".card", has_text="interactive")
        await playwright.expect(card).to_contain_text("10 wait, 3 with engines")


async def test_a_large_fleet_is_shown_by_what_is_in_sight() -> None:
    async with shown() as it:
        it.solver.view = large(200, 10_000)
        await it.open()
        await it.page.locator(".group").first.wait_for()
        lanes = it.page.locator(".lane")
        assert await lanes.count() < 20
        events = "window.qlm.events"
        before = await it.page.evaluate(events)
        await it.until(f"{events} >= {before + 3}")
        await it.page.locator(".lanes").evaluate("one => { one.scrollTop = 100000; }")
        await playwright.expect(it.page.locator('.lane[aria-rowindex="200"]')).to_have_count(1)
        assert await lanes.count() < 20
        rows = it.page.locator("table.rows tbody tr[aria-rowindex]")
        assert await rows.count() < 30
        await it.page.locator(".scroll:has(table.rows)").evaluate("one => { one.scrollTop = 1e6; }")
        await playwright.expect(rows.last).to_contain_text("gpu-199")
        await it.page.get_by_label("find").fill("gpu-123")
        await playwright.expect(lanes).to_have_count(1)


async def test_it_says_when_the_solver_is_away() -> None:
    async with shown(solver="127.0.0.1:1") as it:
        await it.open()
        await playwright.expect(it.page.locator(".link-state")).to_contain_text("no solver")
