// The page: what there is to see at a glance, then queues, instances, classes, one request, batches and plans.
import { type JSX, render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { feed, run, setKey, useFeed } from "./feed";
import { Classes, Instances } from "./fleet";
import { type Chosen, Gantt, described } from "./gantt";
import { GROUP, type Picture, count, plural } from "./model";
import { Batches, Plans } from "./plans";
import { Requests } from "./requests";

const THEME = "qlm-theme";
const SPOKEN_EVERY_MS = 20_000;

/** The state of things in a sentence, as a screen reader says it now and then. */
function spoken(picture: Picture): string {
  if (!picture.operator) return "";
  const down = Object.values(picture.agents).filter((agent) => ["down", "away", "gone"].includes(agent.state));
  const words = [`${plural(picture.waiting ?? 0, "request")} waiting`];
  if (picture.late) words.push(`${count(picture.late)} expected late`);
  if (down.length) words.push(`not serving: ${down.slice(0, 3).map((agent) => agent.id).join(", ")}`);
  return words.join(", ");
}

function Spoken({ picture }: { picture: Picture }): JSX.Element {
  const [said, say] = useState("");
  useEffect(() => {
    const tell = () => feed.picture && say(spoken(feed.picture));
    tell();
    const timer = setInterval(tell, SPOKEN_EVERY_MS);
    return () => clearInterval(timer);
  }, [picture.gateway]);
  return (
    <p class="spoken" role="status">
      {said}
    </p>
  );
}

function Glance({ picture }: { picture: Picture }): JSX.Element {
  const agents = Object.values(picture.agents);
  const serving = agents.filter((agent) => agent.state === "ready" || agent.state === "swapping").length;
  const speed = agents.reduce((sum, agent) => sum + (agent.tokens_per_s ?? 0), 0);
  const tiles: [string, string, boolean][] = [[`${serving} / ${agents.length}`, "instances serve", serving < agents.length]];
  if (picture.operator) {
    tiles.unshift(
      [count(picture.waiting ?? 0), "requests wait", false],
      [count(picture.held ?? 0), "with engines", false],
      [count(picture.late ?? 0), "expected late", (picture.late ?? 0) > 0],
    );
    tiles.push([count(speed), "output tokens/s", false]);
    if (picture.unplaced?.length) tiles.push([count(picture.unplaced.length), "groups nobody can serve", true]);
  } else if (picture.yours) {
    tiles.unshift(
      [count(picture.yours.waiting), "of yours wait", false],
      [count(picture.yours.pulled + picture.yours.running), "of yours with engines", false],
    );
  }
  return (
    <dl class="glance">
      {tiles.map(([value, name, bad]) => (
        <div key={name} class={bad ? "bad" : ""}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function Details({ picture, chosen, want }: {
  picture: Picture;
  chosen: Chosen | null;
  want: (id: string) => void;
}): JSX.Element | null {
  if (chosen === null) return null;
  const queue = picture.agents[chosen.agent]?.queue ?? [];
  const place = queue.findIndex((group) => group[GROUP.id] === chosen.group);
  const group = queue[place];
  if (group === undefined) return <p class="details">The group has left the queue of {chosen.agent}.</p>;
  const first = group[GROUP.first];
  return (
    <p class="details">
      <b>{chosen.agent}</b>, place {place + 1}: {described(group, picture)}.{" "}
      {first !== null && (
        <button type="button" class="link" onClick={() => want(first)}>
          Story of its first request
        </button>
      )}
    </p>
  );
}

function Lock(): JSX.Element {
  const [value, setValue] = useState("");
  return (
    <form
      class="lock"
      onSubmit={(event) => {
        event.preventDefault();
        setKey(value);
      }}
    >
      <h2>{feed.said}</h2>
      <label>
        API key{" "}
        <input type="password" autocomplete="off" value={value} onInput={(event) => setValue(event.currentTarget.value)} />
      </label>{" "}
      <button type="submit">Look on</button>
      <p>It stays in this tab. An operator's key shows everything, a tenant's its own requests.</p>
    </form>
  );
}

function Page(): JSX.Element {
  const { picture, state, said } = useFeed();
  const [chosen, choose] = useState<Chosen | null>(null);
  const [wanted, setWanted] = useState("");
  const [theme, setTheme] = useState(localStorage.getItem(THEME) ?? "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
  }, [theme]);
  const want = (id: string) => {
    setWanted(id);
    document.getElementById("requests")?.scrollIntoView({ block: "start" });
  };
  const away = state === "live" && picture !== null && !picture.solver;
  return (
    <>
      <header class="top">
        <h1>QLM</h1>
        {picture && <span>{picture.gateway}</span>}
        <span class={`link-state ${away ? "broken" : state}`} role="status">
          {away ? `no solver: ${picture?.reason ?? ""}` : state === "live" ? "live" : said || "connecting"}
        </span>
        <nav aria-label="parts of the page">
          {["queues", "instances", "classes", "requests", "plans"].map((name) => (
            <a key={name} href={`#${name}`}>
              {name}
            </a>
          ))}
        </nav>
        <label>
          theme{" "}
          <select value={theme} onChange={(event) => setTheme(event.currentTarget.value)}>
            <option>auto</option>
            <option>light</option>
            <option>dark</option>
          </select>
        </label>
      </header>
      <main>
        {state === "locked" && <Lock />}
        {picture && state !== "locked" && (
          <>
            <Spoken picture={picture} />
            <Glance picture={picture} />
            <Gantt picture={picture} chosen={chosen} choose={choose} />
            <Details picture={picture} chosen={chosen} want={want} />
            <Instances picture={picture} />
            {picture.operator && <Classes picture={picture} />}
            <Requests wanted={wanted} want={want} />
            {picture.operator && <Batches picture={picture} />}
            {picture.operator && <Plans picture={picture} />}
          </>
        )}
      </main>
    </>
  );
}

const root = document.getElementById("page");
if (root !== null) {
  root.textContent = "";
  render(<Page />, root);
  void run();
}
// For who measures or tests.
(window as unknown as { qlm: typeof feed }).qlm = feed;
