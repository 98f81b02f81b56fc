// Instances as a table, and SLO classes as cards: attainment, waits against targets, estimates against what came.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { type Agent, type Picture, type Tally, colour, count, percent, seconds } from "./model";

function Bar({ value, most, label }: { value: number; most: number | null; label: string }): JSX.Element {
  if (most === null || most <= 0) return <span>{count(value)}</span>;
  return (
    <span class="meter">
      <meter min={0} max={most} value={Math.min(value, most)} aria-label={label} />
      <span>
        {count(value)}
        <small> / {count(most)}</small>
      </span>
    </span>
  );
}

function speedOf(agent: Agent, picture: Picture): string {
  const found = picture.speed?.find((one) => one.gpu === agent.gpu && one.model === agent.model);
  return found === undefined ? "–" : `${found.factor.toFixed(2)} ×`;
}

const ROW_PX = 30;
const SHOWN_PX = 420;
const AHEAD_ROWS = 5;

export function Instances({ picture }: { picture: Picture }): JSX.Element {
  const [top, setTop] = useState(0);
  const all = Object.values(picture.agents).sort((a, b) =>
    a.id.localeCompare(b.id, "en", { numeric: true }),
  );
  // Of a long table only what is in sight, between two rows as high as what is left out.
  const first = Math.max(0, Math.floor(top / ROW_PX) - AHEAD_ROWS);
  const agents = all.slice(first, Math.ceil((top + SHOWN_PX) / ROW_PX) + AHEAD_ROWS);
  const below = all.length - first - agents.length;
  return (
    <section aria-labelledby="instances">
      <h2 id="instances">Instances</h2>
      <div
        class="scroll"
        tabIndex={0}
        role="group"
        aria-label="instances, to be scrolled"
        style={{ maxHeight: `${SHOWN_PX}px` }}
        onScroll={(event) => setTop(event.currentTarget.scrollTop)}
      >
        <table class="rows" aria-rowcount={all.length + 1}>
          <thead>
            <tr>
              <th scope="col">instance</th>
              <th scope="col">GPU</th>
              <th scope="col">state</th>
              <th scope="col">awake</th>
              <th scope="col">other models</th>
              {picture.operator && (
                <>
                  <th scope="col">batch</th>
                  <th scope="col">KV tokens</th>
                  <th scope="col">tokens/s</th>
                  <th scope="col" title="real over profiled speed">
                    speed
                  </th>
                  <th scope="col">waiting</th>
                </>
              )}
            </tr>
          </thead>
          <tbody>
            {first > 0 && <tr key="above" aria-hidden="true" style={{ height: `${first * ROW_PX}px` }} />}
            {agents.map((agent, place) => (
              <tr key={agent.id} aria-rowindex={first + place + 2}>
                <th scope="row">{agent.id}</th>
                <td>{agent.gpu}</td>
                <td>
                  <span class={`state ${agent.state}`}>{agent.state}</span>
                </td>
                <td>
                  <i class="swatch" style={{ background: colour(picture.models.indexOf(agent.model ?? "")) }} />{" "}
                  {agent.swapping_to ? `→ ${agent.swapping_to}` : (agent.model ?? "–")}
                </td>
                <td>
                  {agent.models
                    .map((model) => picture.models[model] as string)
                    .filter((name) => name !== agent.model)
                    .map((name) => `${name} (${agent.tiers[name] ?? "cold"})`)
                    .join(", ") || "–"}
                </td>
                {picture.operator && (
                  <>
                    <td>
                      <Bar value={agent.running ?? 0} most={agent.batch_max} label={`batch of ${agent.id}`} />
                    </td>
                    <td>
                      <Bar value={agent.kv ?? 0} most={agent.kv_max} label={`KV cache of ${agent.id}`} />
                    </td>
                    <td class="number">{count(agent.tokens_per_s ?? 0)}</td>
                    <td class="number">{speedOf(agent, picture)}</td>
                    <td class="number">{count(agent.waiting ?? 0)}</td>
                  </>
                )}
              </tr>
            ))}
            {below > 0 && <tr key="below" aria-hidden="true" style={{ height: `${below * ROW_PX}px` }} />}
          </tbody>
        </table>
      </div>
    </section>
  );
}

const SPREAD = [0.01, 3600 * 4] as const;

/** Where a time stands on a logarithmic axis, 0 to 1. */
function place(s: number): number {
  const [least, most] = SPREAD;
  const value = Math.log(Math.max(least, Math.min(most, s)) / least);
  return value / Math.log(most / least);
}

function Waits({ tally, target_s }: { tally: Tally; target_s: number }): JSX.Element {
  const [p50 = 0, p90 = 0, p99 = 0] = tally.waits_s;
  const late = p99 > target_s;
  return (
    <figure>
      <svg viewBox="0 0 200 26" role="img" aria-label={`waits: half within ${seconds(p50)}, 9 in 10 within ${seconds(p90)}, 99 % within ${seconds(p99)}; target ${seconds(target_s)}`}>
        <line x1="0" x2="200" y1="13" y2="13" class="rule" />
        <line x1={200 * place(p50)} x2={200 * place(p99)} y1="13" y2="13" class={late ? "span late" : "span"} />
        {[p50, p90, p99].map((value, at) => (
          <circle key={at} cx={200 * place(value)} cy="13" r={at === 0 ? 4 : 3} class={value > target_s ? "dot late" : "dot"} />
        ))}
        <line x1={200 * place(target_s)} x2={200 * place(target_s)} y1="2" y2="24" class="target" />
      </svg>
      <figcaption>
        waits p50 {seconds(p50)}, p90 {seconds(p90)}, p99 {seconds(p99)}; target {seconds(target_s)}
      </figcaption>
    </figure>
  );
}

function Calibration({ tally }: { tally: Tally }): JSX.Element | null {
  if (!tally.points.length) return null;
  const [p50 = 0, p90 = 0, p99 = 0] = tally.within;
  return (
    <figure>
      <svg viewBox="0 0 100 100" class="scatter" role="img" aria-label={`estimates against what came: ${percent(p50)} within the estimated p50, ${percent(p90)} within p90, ${percent(p99)} within p99`}>
        <line x1="0" y1="100" x2="100" y2="0" class="rule" />
        {tally.points.map(([estimate, came], at) => (
          <circle key={at} cx={100 * place(estimate)} cy={100 - 100 * place(came)} r="1.6" class="dot" />
        ))}
      </svg>
      <figcaption>
        estimated (→) against what came (↑): {percent(p50)} within p50, {percent(p90)} within p90, {percent(p99)} within p99
      </figcaption>
    </figure>
  );
}

export function Classes({ picture }: { picture: Picture }): JSX.Element {
  const names = [...new Set([...Object.keys(picture.targets), ...Object.keys(picture.tally ?? {})])];
  return (
    <section aria-labelledby="classes">
      <h2 id="classes">Classes</h2>
      <div class="cards">
        {names.map((name) => {
          const tally = picture.tally?.[name];
          const target = picture.targets[name];
          const number = picture.classes_set.indexOf(name);
          const [waiting, held, oldest] = picture.class_counts?.[number] ?? [0, 0, 0];
          const kept = tally === undefined ? null : tally.attained / tally.ended;
          return (
            <article key={name} class="card">
              <h3>{name}</h3>
              <p class="big">
                {kept === null ? "–" : <span class={kept < 0.9 ? "bad" : "good"}>{percent(kept)}</span>}
                <small>
                  {tally === undefined
                    ? " no request ended lately"
                    : ` in time, of ${count(tally.ended)} in ${seconds(picture.tally_s ?? 300)}`}
                </small>
              </p>
              <p>
                {count(waiting)} wait, {count(held)} with engines
                {waiting ? `; the oldest for ${seconds(oldest)}` : ""}
              </p>
              {tally && target && tally.waits_s.length > 0 && <Waits tally={tally} target_s={target.ttft_s} />}
              {tally && <Calibration tally={tally} />}
            </article>
          );
        })}
      </div>
    </section>
  );
}
