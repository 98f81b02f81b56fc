// The page's side of the feed: reads events, keeps the picture, comes back after a break, and knows the gateway's time.
import { useEffect, useState } from "preact/hooks";
import type { Picture } from "./model";

const KEY = "qlm-key";
const PAUSE_MAX_S = 10;

export type State = "connecting" | "live" | "broken" | "locked" | "refused";

export interface Feed {
  state: State;
  said: string;
  picture: Picture | null;
  // Bytes and events so far, for who measures.
  bytes: number;
  events: number;
}

export const feed: Feed = { state: "connecting", said: "", picture: null, bytes: 0, events: 0 };

const listeners = new Set<() => void>();
let heardAt = 0;
let reader: AbortController | null = null;

function changed(): void {
  for (const listener of listeners) listener();
}

export function useFeed(): Feed {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((n) => n + 1);
    listeners.add(listener);
    // Something may have come between the first picture and this.
    listener();
    return () => void listeners.delete(listener);
  }, []);
  return feed;
}

/** The gateway's clock, in seconds. */
export function now(): number {
  if (feed.picture === null) return 0;
  return feed.picture.now + (performance.now() - heardAt) / 1000;
}

export const key = (): string => sessionStorage.getItem(KEY) ?? "";

export function setKey(value: string): void {
  sessionStorage.setItem(KEY, value);
  reader?.abort();
  if (feed.state === "locked") void run();
}

function headers(): Record<string, string> {
  return key() ? { authorization: `Bearer ${key()}` } : {};
}

/** Asks the gateway for JSON; throws an Error that says what it said. */
export async function ask<T>(path: string): Promise<T> {
  const answer = await fetch(path, { headers: headers() });
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(body?.error?.message ?? `status ${answer.status}`);
  return body as T;
}

function take(event: string, data: string): void {
  const said = JSON.parse(data) as Partial<Picture> & { gone?: string[] };
  if (event === "whole" || feed.picture === null) {
    feed.picture = said as Picture;
  } else {
    const { agents, gone, ...rest } = said;
    const all = { ...feed.picture.agents, ...agents };
    for (const id of gone ?? []) delete all[id];
    feed.picture = { ...feed.picture, ...rest, agents: all };
  }
  heardAt = performance.now();
  feed.events += 1;
  feed.state = "live";
  feed.said = "";
  changed();
}

async function read(answer: Response): Promise<void> {
  if (answer.body === null) return;
  const decoder = new TextDecoder();
  const stream = answer.body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await stream.read();
    if (done) return;
    feed.bytes += value.length;
    rest += decoder.decode(value, { stream: true });
    let end = rest.indexOf("\n\n");
    while (end >= 0) {
      const event = /^event: (\w+)\ndata: (.*)$/.exec(rest.slice(0, end));
      if (event !== null) take(event[1] as string, event[2] as string);
      rest = rest.slice(end + 2);
      end = rest.indexOf("\n\n");
    }
  }
}

function say(state: State, said: string): void {
  feed.state = state;
  feed.said = said;
  changed();
}

export async function run(): Promise<void> {
  let pause_s = 0.5;
  for (;;) {
    reader = new AbortController();
    const before = feed.events;
    try {
      const answer = await fetch("/ui/feed", { headers: headers(), signal: reader.signal });
      if (answer.status === 401) return say("locked", "This gateway asks for an API key.");
      if (answer.ok) await read(answer);
      else {
        const body = await answer.json().catch(() => null);
        say("refused", body?.error?.message ?? `The gateway answered ${answer.status}.`);
      }
    } catch {
      // Said below: whatever it was, the connection is gone.
    }
    if (feed.events > before) pause_s = 0.5;
    if (feed.state !== "refused") say("broken", "The connection to the gateway is lost.");
    await new Promise((wake) => setTimeout(wake, 1000 * pause_s));
    pause_s = Math.min(PAUSE_MAX_S, 2 * pause_s);
  }
}
