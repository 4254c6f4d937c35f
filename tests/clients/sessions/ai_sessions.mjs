// The sessions of the ai package, which are the same for each of its providers. Its own loop executes tools.

import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { ASKED, counted, same, sameText, wholeAndStreamed } from "./checks.mjs";

async function ask(stream, options) {
  const asked = { temperature: 0, maxOutputTokens: 2000, ...options };
  if (!stream) return generateText(asked);
  let failure;
  const result = streamText({ ...asked, onError: ({ error }) => (failure = error) });
  await result.consumeStream();
  if (failure) throw failure;
  const names = ["text", "reasoningText", "usage", "totalUsage", "finishReason"];
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await result[name]])));
}

export async function callsATool(stream, model) {
  const called = [];
  const execute = async (given) => (called.push(given), JSON.parse(ASKED.RESULT));
  const get_weather = tool({ description: ASKED.DESCRIPTION, inputSchema: jsonSchema(ASKED.SCHEMA), execute });
  const asked = { model, prompt: ASKED.WEATHER, tools: { get_weather }, stopWhen: stepCountIs(3) };
  const { text, totalUsage } = await ask(stream, asked);
  same("called with", called, [ASKED.ARGUMENTS]);
  sameText(text, ASKED.REPORT);
  return counted(totalUsage.inputTokens, totalUsage.outputTokens);
}

// options: what makes this provider ask for thinking
export async function run(model, options) {
  await wholeAndStreamed("chat", async (stream) => {
    const { text, finishReason } = await ask(stream, { model, prompt: ASKED.QUESTION });
    sameText(text, ASKED.ANSWER);
    same("finishReason", finishReason, "stop");
  });
  await wholeAndStreamed("tools", (stream) => callsATool(stream, model));
  await wholeAndStreamed("thinking", async (stream) => {
    const { text, reasoningText } = await ask(stream, { model, prompt: ASKED.SUM, ...options });
    sameText(reasoningText, ASKED.THOUGHT);
    sameText(text, ASKED.SUM_ANSWER);
  });
  await wholeAndStreamed("usage", async (stream) => {
    const { usage } = await ask(stream, { model, prompt: ASKED.QUESTION });
    return counted(usage.inputTokens, usage.outputTokens);
  });
}
