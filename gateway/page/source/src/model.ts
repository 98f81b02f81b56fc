// What the gateway tells the page (gateway/page/digest.py). Instants are seconds of the gateway's clock.

// A group in a queue: id, model, class, waiting, held, start, end, seconds of a model change before its start, when its first
// request is due, how many are expected late, the id of its first request. Models and classes are numbers of names.
export type Group = [
  number,
  number,
  number,
  number,
  number,
  number | null,
  number | null,
  number,
  number | null,
  number,
  string | null,
];
export const GROUP = {
  id: 0,
  model: 1,
  slo: 2,
  waiting: 3,
  held: 4,
  start: 5,
  end: 6,
  swap: 7,
  due: 8,
  late: 9,
  first: 10,
} as const;

// Since when, which model (-1: none), in which state.
export type Change = [number, number, string];

export interface Agent {
  id: string;
  gpu: string;
  state: string;
  model: string | null;
  swapping_to: string | null;
  tiers: Record<string, string>;
  models: number[];
  batch_max: number | null;
  kv_max: number | null;
  past: Change[];
  // Of one that has gone: when it was here last.
  since?: number;
  queue: Group[];
  // An operator's alone.
  running?: number;
  held?: number;
  kv?: number;
  tokens_per_s?: number;
  late?: number;
  waiting?: number;
  queue_groups?: number;
}

export interface Plan {
  at: number;
  bound_at: number | null;
  objective: number;
  late_weight: number;
  groups: number;
  queues: number;
  backend: string;
  termination: string;
  lower_bound: number | null;
  gap: number | null;
  moved: number;
  wall_s: number;
  capacity: { gpu: string; instances: number; saves_cost: number; saves_late_weight: number }[];
}

export interface Tally {
  ended: number;
  attained: number;
  waits_s: number[];
  within: number[];
  points: [number, number][];
}

export interface Batch {
  id: string;
  status: string;
  endpoint: string;
  model: string | null;
  created_at: number;
  expires_at: number;
  completed_at: number | null;
  request_counts: { total: number; completed: number; failed: number };
  forecast: {
    feasible: boolean | null;
    finish_p50_at: number | null;
    finish_p90_at: number | null;
    explanation: string;
  } | null;
}

export interface Picture {
  now: number;
  unix: number;
  gateway: string;
  refresh_s: number;
  operator: boolean;
  solver: boolean;
  reason?: string;
  models: string[];
  classes_set: string[];
  targets: Record<
    string,
    { ttft_s: number; tpot_s: number | null; e2e_s: number | null; weight: number }
  >;
  agents: Record<string, Agent>;
  yours?: { waiting: number; pulled: number; running: number };
  unplaced?: Group[];
  waiting?: number;
  held?: number;
  late?: number;
  class_counts?: Record<string, [number, number, number]>;
  tally?: Record<string, Tally>;
  tally_s?: number;
  plan?: Plan | null;
  plans?: Plan[];
  planner?: { solves: number; adopted: number; repairs: number; moved_groups: number } | null;
  rwt?: Record<string, Record<string, number | null>>;
  speed?: { gpu: string; model: string; factor: number }[];
  batches?: Batch[];
}

export interface Story {
  request: Record<string, unknown>;
  steps: { at_s: number; what: string; agent: string | null; output_tokens: number | null }[];
  left_out: number;
  why: Record<string, unknown> | null;
}

const HUES = [
  "#56b4e9",
  "#e69f00",
  "#2fbf91",
  "#cc79a7",
  "#e2d53a",
  "#8fa8ff",
  "#ff8f66",
  "#b0b7bf",
];

export const colour = (model: number): string =>
  model < 0 ? "transparent" : (HUES[model % HUES.length] as string);

export function seconds(s: number): string {
  const size = Math.abs(s);
  const sign = s < 0 ? "−" : "";
  if (size < 10) return `${sign}${size.toFixed(1)} s`;
  if (size < 120) return `${sign}${Math.round(size)} s`;
  if (size < 7200) return `${sign}${Math.round(size / 60)} min`;
  if (size < 172800) return `${sign}${(size / 3600).toFixed(1)} h`;
  return `${sign}${Math.round(size / 86400)} d`;
}

export const count = (n: number): string => n.toLocaleString("en");
export const plural = (n: number, noun: string): string =>
  `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
export const percent = (share: number): string => `${(100 * share).toFixed(share < 1 ? 1 : 0)} %`;
