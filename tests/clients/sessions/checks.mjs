// What the sessions in JavaScript share; the same as checks.py.

import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";

export const ASKED = JSON.parse(readFileSync(new URL("questions.json", import.meta.url), "utf8"));
export const { BASE_URL: URL_, MODEL } = process.env;
export const V1 = `${URL_}/v1`;

// Complain, naming both, unless they are equal.
export function same(what, found, wanted) {
  if (!isDeepStrictEqual(found, wanted))
    throw new Error(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

// The same, whatever blank lines stand around it.
export function sameText(found, wanted) {
  same("text", (found ?? "").trim(), wanted);
}

// The two counts of a usage, as whole and streamed must both give them.
export function counted(prompt, completion) {
  if (!(prompt > 0 && completion > 0)) throw new Error(`usage: ${prompt} prompt tokens and ${completion} of the answer`);
  return [prompt, completion];
}

// Run session(false) and session(true), and report both; what they return must be the same.
export async function wholeAndStreamed(name, session) {
  const seen = [];
  for (const stream of [false, true]) {
    let failure = "";
    try {
      seen.push(await session(stream));
      same("streamed", seen.at(-1), seen[0]);
    } catch (error) {
      failure = `${error?.name}: ${error?.message}`.replace(/\s+/g, " ").slice(0, 300);
    }
    console.log(`{"check": ${JSON.stringify(name + (stream ? ", streamed" : ""))}, "failure": ${JSON.stringify(failure)}}`);
  }
}
