// The last plans, what one more instance would be worth, and batches with their progress.
import type { JSX } from "preact";
import { now } from "./feed";
import { type Batch, type Picture, type Plan, count, percent, seconds } from "./model";

function Row({ plan, inForce }: { plan: Plan; inForce: boolean }): JSX.Element {
  // A bound is of the groups that there were; beside an objective of others it would say nothing.
  const bounded = plan.lower_bound !== null && plan.bound_at !== null && plan.bound_at >= plan.at;
  return (
    <tr class={inForce ? "force" : ""}>
      <th scope="row">{inForce ? "in force" : `${seconds(Math.max(0, now() - plan.at))} ago`}</th>
      <td>
        {plan.backend} <small>{plan.termination}</small>
      </td>
      <td class="number">{plan.objective.toPrecision(4)}</td>
      <td class="number">{bounded ? plan.lower_bound?.toPrecision(4) : "–"}</td>
      <td class="number">
        {plan.gap === null ? "–" : percent(plan.gap)}
        {plan.bound_at !== null && <small> {seconds(Math.max(0, now() - plan.bound_at))} ago</small>}
      </td>
      <td class="number">{plan.late_weight.toFixed(1)}</td>
      <td class="number">{count(plan.moved)}</td>
      <td class="number">
        {count(plan.groups)} × {count(plan.queues)}
      </td>
      <td class="number">{seconds(plan.wall_s)}</td>
    </tr>
  );
}

export function Plans({ picture }: { picture: Picture }): JSX.Element {
  const plan = picture.plan ?? null;
  const before = [...(picture.plans ?? [])].reverse().slice(0, 12);
  const said = picture.planner;
  return (
    <section aria-labelledby="plans">
      <h2 id="plans">Plans</h2>
      {said && (
        <p>
          {count(said.solves)} solves, {count(said.adopted)} plans adopted, {count(said.repairs)} repairs by insertion,{" "}
          {count(said.moved_groups)} groups moved.
        </p>
      )}
      <div class="scroll" tabIndex={0} role="group" aria-label="plans, to be scrolled">
        <table>
          <thead>
            <tr>
              <th scope="col">when</th>
              <th scope="col">made by</th>
              <th scope="col">objective</th>
              <th scope="col">bound</th>
              <th scope="col" title="when the bound was proven; the plan has changed since">gap then</th>
              <th scope="col">weighted late</th>
              <th scope="col">moves</th>
              <th scope="col">groups × queues</th>
              <th scope="col">took</th>
            </tr>
          </thead>
          <tbody>
            {plan && <Row plan={plan} inForce />}
            {before.map((one) => (
              <Row key={one.at} plan={one} inForce={false} />
            ))}
          </tbody>
        </table>
      </div>
      <h3>What would help</h3>
      <Advice plan={plan} />
    </section>
  );
}

function Advice({ plan }: { plan: Plan | null }): JSX.Element {
  const worth = (plan?.capacity ?? []).filter((one) => one.saves_cost > 0);
  if (plan === null || !plan.capacity.length) {
    return <p>No bound is proven yet; capacity is priced with it.</p>;
  }
  if (!worth.length) return <p>No further instance would help: nothing is late for want of one.</p>;
  return (
    <ul>
      {worth.map((one) => (
        <li key={one.gpu}>
          One more <b>{one.gpu}</b> beside {count(one.instances)} would save at most{" "}
          {one.saves_late_weight.toFixed(1)} weighted late requests ({one.saves_cost.toPrecision(3)} of the objective).
        </li>
      ))}
      {plan.bound_at !== null && <li class="none">as of {seconds(Math.max(0, now() - plan.bound_at))} ago</li>}
    </ul>
  );
}

function finish(batch: Batch, unix: number): string {
  if (batch.completed_at !== null) return `done ${seconds(unix - batch.completed_at)} ago`;
  const at = batch.forecast?.finish_p90_at ?? batch.forecast?.finish_p50_at;
  return at == null ? "–" : `in ${seconds(Math.max(0, at - unix))}`;
}

export function Batches({ picture }: { picture: Picture }): JSX.Element | null {
  const batches = picture.batches ?? [];
  if (!batches.length) return null;
  return (
    <section aria-labelledby="batches">
      <h2 id="batches">Batches</h2>
      <div class="scroll" tabIndex={0} role="group" aria-label="batches, to be scrolled">
        <table>
          <thead>
            <tr>
              <th scope="col">batch</th>
              <th scope="col">status</th>
              <th scope="col">model</th>
              <th scope="col">progress</th>
              <th scope="col">failed</th>
              <th scope="col">finishes</th>
              <th scope="col">due</th>
              <th scope="col">why then</th>
            </tr>
          </thead>
          <tbody>
            {batches.map((batch) => {
              const { total, completed, failed } = batch.request_counts;
              const risky = batch.forecast?.feasible === false;
              return (
                <tr key={batch.id}>
                  <th scope="row">{batch.id}</th>
                  <td>{batch.status}</td>
                  <td>{batch.model ?? "several"}</td>
                  <td>
                    <progress max={Math.max(1, total)} value={completed + failed} aria-label={`progress of ${batch.id}`} />{" "}
                    {count(completed + failed)} / {count(total)}
                  </td>
                  <td class="number">{count(failed)}</td>
                  <td class={risky ? "bad" : ""}>{finish(batch, picture.unix)}</td>
                  <td>
                    {batch.expires_at > picture.unix
                      ? `in ${seconds(batch.expires_at - picture.unix)}`
                      : `${seconds(picture.unix - batch.expires_at)} ago`}
                  </td>
                  <td>{batch.forecast?.explanation || "–"}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
    </section>
  );
}
