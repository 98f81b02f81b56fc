// Virtual queues as lanes on a time axis: what was awake, the present, and the plan's groups with model changes and due times.
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { now } from "./feed";
import { type Agent, GROUP, type Group, type Picture, colour, count, plural, seconds } from "./model";

const LANE_PX = 46;
const AHEAD_LANES = 3;
// Where the present stands, as a share of the axis.
const PRESENT = 0.14;
const RANGES_S = [30, 120, 600, 3600, 21600, 86400];
const STEPS_S = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600];
// A group is at least so wide to hold a number, or a number and its class.
const NUMBER_PX = 26;
const WORDS_PX = 90;
const TICK_PX = 80;
const MOVE_MS_MIN = 40;

type Order = "late first" | "name" | "longest queue";

export interface Chosen {
  agent: string;
  group: number;
}

function ordered(picture: Picture, order: Order, text: string): Agent[] {
  const agents = Object.values(picture.agents).filter((one) => {
    const names = one.models.map((model) => picture.models[model]).join(" ");
    return `${one.id} ${one.gpu} ${one.state} ${names}`.toLowerCase().includes(text.toLowerCase());
  });
  const by: Record<Order, (one: Agent) => number> = {
    "late first": (one) => -(one.late ?? 0) * 1e6 - (one.state === "ready" ? 0 : 5e5) - (one.waiting ?? 0),
    name: () => 0,
    "longest queue": (one) => -(one.waiting ?? 0),
  };
  const weight = by[order];
  return agents.sort(
    (a, b) => weight(a) - weight(b) || a.id.localeCompare(b.id, "en", { numeric: true }),
  );
}

/** The shortest range that shows nearly all that is planned. */
function fitting(picture: Picture): number {
  const ends = Object.values(picture.agents)
    .map((agent) => {
      const last = agent.queue[agent.queue.length - 1];
      return last === undefined ? 0 : (last[GROUP.end] ?? picture.now) - picture.now;
    })
    .sort((a, b) => a - b);
  const most = ends[Math.floor(0.9 * (ends.length - 1))] ?? 0;
  return RANGES_S.find((range) => range * (1 - PRESENT) >= most) ?? 86400;
}

export function described(group: Group, picture: Picture): string {
  const at = picture.now;
  const words = [
    `group ${group[GROUP.id]}`,
    picture.models[group[GROUP.model]],
    picture.classes_set[group[GROUP.slo]],
    `${count(group[GROUP.waiting])} waiting`,
  ];
  if (group[GROUP.held]) words.push(`${count(group[GROUP.held])} with the engine`);
  if (group[GROUP.swap]) words.push(`after a model change of ${seconds(group[GROUP.swap])}`);
  const start = group[GROUP.start];
  if (start !== null) words.push(start <= at + 0.5 ? "starts now" : `starts in ${seconds(start - at)}`);
  const due = group[GROUP.due];
  if (due !== null) {
    words.push(due < at ? `was due ${seconds(at - due)} ago` : `due in ${seconds(due - at)}`);
  }
  if (group[GROUP.late]) words.push(`${count(group[GROUP.late])} expected late`);
  return words.join(", ");
}

function label(width: number, waiting: number, late: number, name: string): string {
  const mark = late ? "!" : "";
  if (width > WORDS_PX) return `${mark} ${count(waiting)} ${name}`;
  return width > NUMBER_PX ? `${mark}${waiting}` : mark;
}

interface LaneProps {
  agent: Agent;
  picture: Picture;
  px: number;
  origin: number;
  from: number;
  until: number;
  focus: Chosen | null;
  choose: (chosen: Chosen) => void;
  row: number;
}

function Lane({ agent, picture, px, origin, from, until, focus, choose, row }: LaneProps): JSX.Element {
  const x = (at: number) => (at - origin) * px;
  const blocks: JSX.Element[] = [];
  const past: JSX.Element[] = [];
  const marks: JSX.Element[] = [];
  agent.past.forEach(([since, model, state], place) => {
    const next = agent.past[place + 1];
    const left = Math.max(since, from);
    // What lasts goes on behind the present, where it is cut off, until more is heard.
    const right = next === undefined ? picture.now + 60 : next[0];
    if (right <= left || (model < 0 && state === "ready")) return;
    past.push(
      <i
        key={`p${since}`}
        class={`past ${state}`}
        style={{ left: `${x(left)}px`, width: `${(right - left) * px}px`, background: colour(model) }}
      />,
    );
  });
  for (const group of agent.queue) {
    const [id, model, slo, waiting, held, start, end, swap, due, late] = group;
    if (start === null || end === null || start - swap > until) continue;
    const width = Math.max(4, (Math.min(end, until) - start) * px - 1);
    if (swap > 0) {
      blocks.push(
        <i
          key={`s${id}`}
          class="swap"
          title={`model change, ${seconds(swap)}`}
          style={{ left: `${x(start - swap)}px`, width: `${Math.max(2, swap * px)}px` }}
        />,
      );
    }
    const chosen = focus !== null && focus.agent === agent.id && focus.group === id;
    const words = described(group, picture);
    const name = picture.classes_set[slo] ?? "";
    blocks.push(
      <button
        key={id}
        type="button"
        class={`group${late ? " late" : ""}${held ? " held" : ""}${chosen ? " chosen" : ""}`}
        style={{ left: `${x(start)}px`, width: `${width}px`, background: colour(model) }}
        title={words}
        aria-label={words}
        tabIndex={chosen ? 0 : -1}
        data-group={id}
        onClick={() => choose({ agent: agent.id, group: id })}
      >
        {label(width, waiting, late, name)}
      </button>,
    );
    if (due !== null && due >= from && due <= until) {
      marks.push(
        <i
          key={`d${id}`}
          class={`due${late ? " late" : ""}`}
          title={`group ${id} is due`}
          style={{ left: `${x(due)}px` }}
        />,
      );
    }
  }
  const hidden = (agent.queue_groups ?? 0) - agent.queue.length;
  return (
    <div class="lane" role="row" aria-rowindex={row + 1} style={{ top: `${row * LANE_PX}px` }} data-agent={agent.id}>
      <div class="head" role="rowheader">
        <b>{agent.id}</b> <span class={`state ${agent.state}`}>{agent.state}</span>
        <small>
          <i class="swatch" style={{ background: colour(picture.models.indexOf(agent.swapping_to ?? agent.model ?? "")) }} />
          {agent.swapping_to ? `→ ${agent.swapping_to}` : (agent.model ?? "no model")}
        </small>
        {agent.waiting !== undefined && (
          <small class="waits">
            {count(agent.waiting)} wait
            {agent.late ? <em class="bad"> {count(agent.late)} late</em> : null}
          </small>
        )}
      </div>
      <div class="track" role="gridcell">
        {agent.state === "gone" && <span class="left">left {seconds(picture.now - (agent.since ?? picture.now))} ago</span>}
        <div class="before">
          <div class="moving">{past}</div>
        </div>
        <div class="ahead">
          <div class="moving">{blocks}</div>
        </div>
        <div class="moving">{marks}</div>
        {hidden > 0 && <span class="hidden">and {plural(hidden, "group")} more</span>}
      </div>
    </div>
  );
}

export function Gantt({ picture, chosen, choose }: {
  picture: Picture;
  chosen: Chosen | null;
  choose: (chosen: Chosen) => void;
}): JSX.Element {
  const [range, setRange] = useState(0);
  const [order, setOrder] = useState<Order>("late first");
  const [text, setText] = useState("");
  const [width, setWidth] = useState(800);
  const [top, setTop] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  const body = useRef<HTMLDivElement>(null);
  const origin = useMemo(() => picture.now, []);
  const shown_s = range || fitting(picture);
  const px = width / shown_s;
  const lanes = ordered(picture, order, text);

  useEffect(() => {
    const measure = new ResizeObserver(() => {
      const track = box.current?.querySelector(".axis");
      if (track) setWidth(Math.max(200, track.clientWidth));
    });
    if (box.current) measure.observe(box.current);
    return () => measure.disconnect();
  }, []);

  useEffect(() => {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    // A pixel at a time is as smooth as it gets, and more often than that nobody sees.
    const every_ms = still ? 1000 : Math.max(MOVE_MS_MIN, 1000 / px);
    const move = () => {
      const shift = PRESENT * width - (now() - origin) * px;
      body.current?.style.setProperty("--shift", `${shift.toFixed(1)}px`);
    };
    move();
    const timer = setInterval(move, every_ms);
    return () => clearInterval(timer);
  }, [px, width, origin]);

  const height = Math.min(lanes.length, 12) * LANE_PX;
  const first = Math.max(0, Math.floor(top / LANE_PX) - AHEAD_LANES);
  const last = Math.min(lanes.length, Math.ceil((top + height) / LANE_PX) + AHEAD_LANES);
  const from = picture.now - PRESENT * shown_s * 1.2;
  const until = picture.now + shown_s;
  const focus = chosen ?? firstOf(lanes);

  function key(event: KeyboardEvent): void {
    const steps: Record<string, [number, number]> = {
      ArrowDown: [1, 0],
      ArrowUp: [-1, 0],
      ArrowRight: [0, 1],
      ArrowLeft: [0, -1],
    };
    const step = steps[event.key];
    if (step === undefined || focus === null) return;
    event.preventDefault();
    const next = stepped(lanes, focus, step);
    if (next === null) return;
    choose(next);
    const row = lanes.findIndex((agent) => agent.id === next.agent);
    const scroller = body.current;
    if (scroller) {
      if (row * LANE_PX < scroller.scrollTop) scroller.scrollTop = row * LANE_PX;
      if ((row + 1) * LANE_PX > scroller.scrollTop + height) scroller.scrollTop = (row + 1) * LANE_PX - height;
    }
    requestAnimationFrame(() =>
      requestAnimationFrame(() => {
        const at = `[data-agent="${CSS.escape(next.agent)}"] [data-group="${next.group}"]`;
        body.current?.querySelector<HTMLElement>(at)?.focus({ preventScroll: true });
      }),
    );
  }

  return (
    <section aria-labelledby="queues" class="gantt" ref={box}>
      <header>
        <h2 id="queues">Virtual queues</h2>
        <label>
          show{" "}
          <select value={range} onChange={(event) => setRange(Number(event.currentTarget.value))}>
            <option value={0}>what is planned</option>
            {RANGES_S.map((one) => (
              <option key={one} value={one}>
                {seconds(one)}
              </option>
            ))}
          </select>
        </label>
        <label>
          order{" "}
          <select value={order} onChange={(event) => setOrder(event.currentTarget.value as Order)}>
            <option>late first</option>
            <option>name</option>
            <option>longest queue</option>
          </select>
        </label>
        <label>
          find{" "}
          <input
            type="search"
            placeholder="instance, GPU, model"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        </label>
        <ul class="legend" aria-label="models">
          {picture.models.map((name, place) => (
            <li key={name}>
              <i class="swatch" style={{ background: colour(place) }} /> {name}
            </li>
          ))}
          <li>
            <i class="swatch swap" /> model change
          </li>
          <li>
            <i class="swatch late">!</i> expected late
          </li>
          <li>
            <i class="mark" /> due
          </li>
        </ul>
      </header>
      <div class="scale" aria-hidden="true">
        <div class="head" />
        <div class="axis">{ticks(shown_s, width)}</div>
      </div>
      <div
        class="lanes"
        role="grid"
        aria-label={`${plural(lanes.length, "queue")}; arrow keys move between queues and groups`}
        aria-rowcount={lanes.length}
        ref={body}
        tabIndex={focus === null ? 0 : -1}
        style={{ height: `${height}px` }}
        onScroll={(event) => setTop(event.currentTarget.scrollTop)}
        onKeyDown={key}
      >
        <div style={{ height: `${lanes.length * LANE_PX}px` }}>
          {lanes.slice(first, last).map((agent, place) => (
            <Lane
              key={agent.id}
              agent={agent}
              picture={picture}
              px={px}
              origin={origin}
              from={from}
              until={until}
              focus={focus}
              choose={choose}
              row={first + place}
            />
          ))}
        </div>
        <div class="present" aria-hidden="true" style={{ height: `${lanes.length * LANE_PX}px` }} />
      </div>
      {!lanes.length && <p class="none">No instance {text ? "matches" : "is connected"}.</p>}
    </section>
  );
}

function firstOf(lanes: Agent[]): Chosen | null {
  for (const agent of lanes) {
    const group = agent.queue[0];
    if (group !== undefined) return { agent: agent.id, group: group[GROUP.id] };
  }
  return null;
}

function stepped(lanes: Agent[], at: Chosen, [down, right]: [number, number]): Chosen | null {
  const row = lanes.findIndex((agent) => agent.id === at.agent);
  if (row < 0) return firstOf(lanes);
  if (right) {
    const queue = lanes[row]?.queue ?? [];
    const place = queue.findIndex((group) => group[GROUP.id] === at.group);
    const group = queue[Math.max(0, Math.min(queue.length - 1, place + right))];
    return group === undefined ? null : { agent: at.agent, group: group[GROUP.id] };
  }
  for (let next = row + down; next >= 0 && next < lanes.length; next += down) {
    const agent = lanes[next];
    const group = agent?.queue[0];
    if (agent !== undefined && group !== undefined) return { agent: agent.id, group: group[GROUP.id] };
  }
  return null;
}

function ticks(shown_s: number, width: number): JSX.Element[] {
  const step = STEPS_S.find((one) => (one / shown_s) * width >= TICK_PX) ?? 86400;
  const found: JSX.Element[] = [];
  const most = Math.floor(((1 - PRESENT) * shown_s) / step);
  const least = -Math.floor((PRESENT * shown_s) / step);
  for (let place = least; place <= most; place += 1) {
    const left = (PRESENT + (place * step) / shown_s) * 100;
    found.push(
      <span key={place} style={{ left: `${left}%` }}>
        {place === 0 ? "now" : `${place > 0 ? "+" : ""}${seconds(place * step)}`}
      </span>,
    );
  }
  return found;
}
