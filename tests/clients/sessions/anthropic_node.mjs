// Anthropic's client for JavaScript, on /v1/messages.

import Anthropic from "@anthropic-ai/sdk";
import { ASKED, MODEL, URL_, counted, same, sameText, wholeAndStreamed } from "./checks.mjs";

const client = new Anthropic({ baseURL: URL_ });
const tools = [{ name: "get_weather", description: ASKED.DESCRIPTION, input_schema: ASKED.SCHEMA }];
const user = (content) => ({ role: "user", content });

// The message, put together by the client where it was streamed.
async function ask(stream, messages, options = {}) {
  const asked = { model: MODEL, messages, max_tokens: 200, ...options };
  return stream ? client.messages.stream(asked).finalMessage() : client.messages.create(asked);
}

await wholeAndStreamed("chat", async (stream) => {
  const message = await ask(stream, [user(ASKED.QUESTION)]);
  same("stop_reason", message.stop_reason, "end_turn");
  sameText(message.content[0].text, ASKED.ANSWER);
});

await wholeAndStreamed("tools", async (stream) => {
  const messages = [user(ASKED.WEATHER)];
  const { content, stop_reason } = await ask(stream, messages, { tools, tool_choice: { type: "any" } });
  same("stop_reason", stop_reason, "tool_use");
  same("call", [content[0].name, content[0].input], ["get_weather", ASKED.ARGUMENTS]);
  const result = { type: "tool_result", tool_use_id: content[0].id, content: ASKED.RESULT };
  messages.push({ role: "assistant", content }, user([result]));
  sameText((await ask(stream, messages, { tools })).content[0].text, ASKED.REPORT);
});

await wholeAndStreamed("thinking", async (stream) => {
  const options = { max_tokens: 2000, thinking: { type: "enabled", budget_tokens: 1024 } };
  const [thought, block] = (await ask(stream, [user(ASKED.SUM)], options)).content;
  sameText(thought.thinking, ASKED.THOUGHT);
  sameText(block.text, ASKED.SUM_ANSWER);
});

await wholeAndStreamed("usage", async (stream) => {
  const messages = [user(ASKED.QUESTION)];
  const { usage } = await ask(stream, messages);
  const prompt = usage.input_tokens + (usage.cache_read_input_tokens ?? 0);
  same("countTokens", (await client.messages.countTokens({ model: MODEL, messages })).input_tokens, prompt);
  return counted(prompt, usage.output_tokens);
});
