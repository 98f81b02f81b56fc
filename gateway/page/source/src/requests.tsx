// One request's story: what happened to it, where it stands, and why it waits.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ask } from "./feed";
import { type Story, seconds } from "./model";

const REFRESH_MS = 3000;

interface Listed {
  id: string;
  model: string;
  slo_class: string;
  phase: string;
  waited_s?: number;
}

function text(value: unknown): string {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toFixed(2);
  return String(value);
}

const signed = (cost: number): string => `${cost < 0 ? "−" : "+"}${Math.abs(cost).toFixed(2)}`;

function Steps({ story }: { story: Story }): JSX.Element {
  if (!story.steps.length) {
    return <p class="none">It is not among the last requests of this gateway, so its steps are not remembered.</p>;
  }
  const last = story.steps[story.steps.length - 1]?.at_s || 1;
  return (
    <>
      <ol class="steps">
        {story.steps.map((step, place) => (
          <li key={place} class={step.what.replace(" ", "-")}>
            <time>{seconds(step.at_s)}</time>
            <i style={{ marginLeft: `${(60 * step.at_s) / Math.max(last, 0.001)}px` }} aria-hidden="true" />
            <b>{step.what}</b>
            {step.agent && ` ${step.what === "pulled" || step.what === "resumed" ? "by" : "at"} ${step.agent}`}
            {step.output_tokens !== null && `, ${step.output_tokens} output tokens so far`}
          </li>
        ))}
      </ol>
      {story.left_out > 0 && <p>{story.left_out} steps in between are left out.</p>}
    </>
  );
}

function Wait({ request }: { request: Record<string, unknown> }): JSX.Element | null {
  const estimate = request.estimate as { mean_s: number; p90_s: number } | null;
  if (!estimate) return null;
  const came = typeof request.ttft_s === "number" ? `; it came after ${seconds(request.ttft_s)}` : "";
  return (
    <p>
      First token estimated at its arrival: {seconds(estimate.mean_s)}, 9 times in 10 within {seconds(estimate.p90_s)}
      {came}
    </p>
  );
}

function Why({ why }: { why: Record<string, unknown> }): JSX.Element {
  const ahead = (why.groups_ahead as Record<string, unknown>[] | undefined) ?? [];
  const others = (why.alternatives as Record<string, unknown>[] | undefined) ?? [];
  return (
    <div class="why">
      <h4>Why it waits</h4>
      <p>{text(why.because)}</p>
      {typeof why.due_in_s === "number" && (
        <p>{why.due_in_s < 0 ? `It was due ${seconds(-why.due_in_s)} ago.` : `It is due in ${seconds(why.due_in_s)}.`}</p>
      )}
      {ahead.length > 0 && (
        <details>
          <summary>Behind {ahead.length} groups</summary>
          <ol>
            {ahead.map((group, place) => (
              <li key={place}>
                group {text(group.group)}: {text(group.waiting)} of {text(group.model)}, {text(group.slo_class)}
              </li>
            ))}
          </ol>
        </details>
      )}
      {others.length > 0 && (
        <p>
          At other places its group would change what the plan costs:{" "}
          {others.map((one) => `${text(one.agent)} by ${signed(one.extra_cost as number)}`).join(", ")}.
        </p>
      )}
    </div>
  );
}

export function Requests({ wanted, want }: { wanted: string; want: (id: string) => void }): JSX.Element {
  const [story, setStory] = useState<Story | null>(null);
  const [error, setError] = useState("");
  const [listed, setListed] = useState<Listed[] | null>(null);
  const [typed, setTyped] = useState(wanted);

  useEffect(() => {
    setTyped(wanted);
    setStory(null);
    setError("");
    if (!wanted) return;
    let over = false;
    let timer = 0;
    const look = async () => {
      try {
        const found = await ask<Story>(`/ui/requests/${encodeURIComponent(wanted)}`);
        if (over) return;
        setStory(found);
        const phase = found.request.phase as string;
        if (["waiting", "pulled", "running"].includes(phase)) timer = window.setTimeout(look, REFRESH_MS);
      } catch (caught) {
        if (!over) setError((caught as Error).message);
      }
    };
    void look();
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [wanted]);

  const list = async () => {
    try {
      const page = await ask<{ data: Listed[] }>("/v1/requests?limit=20");
      setListed(page.data);
      setError("");
    } catch (caught) {
      setError((caught as Error).message);
    }
  };

  return (
    <section aria-labelledby="requests">
      <header>
        <h2 id="requests">One request</h2>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            want(typed.trim());
          }}
        >
          <label>
            id <input value={typed} size={40} onInput={(event) => setTyped(event.currentTarget.value)} />
          </label>{" "}
          <button type="submit">Show</button>{" "}
          <button type="button" onClick={() => void list()}>
            List the newest
          </button>
        </form>
      </header>
      {error && (
        <p role="alert" class="bad">
          {error}
        </p>
      )}
      {listed && (
        <ul class="listed">
          {listed.map((one) => (
            <li key={one.id}>
              <button type="button" class="link" onClick={() => want(one.id)}>
                {one.id}
              </button>{" "}
              {one.phase}, {one.model}, {one.slo_class}
              {one.waited_s !== undefined && `, arrived ${seconds(one.waited_s)} ago`}
            </li>
          ))}
          {!listed.length && <li>No request is open.</li>}
        </ul>
      )}
      {story && (
        <article class="card story" aria-live="polite">
          <h3>{text(story.request.id)}</h3>
          <p>
            {text(story.request.model)}, {text(story.request.slo_class)}: <b>{text(story.request.phase)}</b>
            {story.request.agent ? ` at ${text(story.request.agent)}` : ""}
            {story.request.reason ? ` (${text(story.request.reason)})` : ""}
          </p>
          <Wait request={story.request} />
          {story.why && <Why why={story.why} />}
          <Steps story={story} />
        </article>
      )}
    </section>
  );
}
