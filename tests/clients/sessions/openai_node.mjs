// The openai client for JavaScript, on /v1/chat/completions and on /v1/responses.

import OpenAI from "openai";
import { ASKED, MODEL, V1, counted, same, sameText, wholeAndStreamed } from "./checks.mjs";

const client = new OpenAI({ baseURL: V1 });
const declared = { name: "get_weather", description: ASKED.DESCRIPTION, parameters: ASKED.SCHEMA };
const tools = [{ type: "function", function: declared }];
const user = (content) => ({ role: "user", content });

// The completion, put together by the client where it was streamed.
async function ask(stream, messages, options = {}) {
  const asked = { model: MODEL, messages, temperature: 0, max_tokens: 200, ...options };
  if (!stream) return client.chat.completions.create(asked);
  return client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } }).finalChatCompletion();
}

async function respond(stream, input, options = {}) {
  const asked = { model: MODEL, input, temperature: 0, max_output_tokens: 200, ...options };
  return stream ? client.responses.stream(asked).finalResponse() : client.responses.create(asked);
}

await wholeAndStreamed("chat", async (stream) => {
  const [choice] = (await ask(stream, [user(ASKED.QUESTION)])).choices;
  sameText(choice.message.content, ASKED.ANSWER);
  same("finish_reason", choice.finish_reason, "stop");
});

await wholeAndStreamed("tools", async (stream) => {
  // The client's own loop: it calls the function and sends back what that says.
  const called = [];
  const run = (args) => (called.push(args), ASKED.RESULT);
  const own = [{ type: "function", function: { ...declared, function: run, parse: JSON.parse } }];
  const asked = { model: MODEL, messages: [user(ASKED.WEATHER)], temperature: 0, max_tokens: 200, tools: own, stream };
  const text = await client.chat.completions.runTools(asked).finalContent();
  same("called with", called, [ASKED.ARGUMENTS]);
  sameText(text, ASKED.REPORT);
});

await wholeAndStreamed("thinking", async (stream) => {
  // The client has no field of its own; agents read either of the two in use, and put its pieces together themselves.
  const asked = { model: MODEL, messages: [user(ASKED.SUM)], temperature: 0, max_tokens: 200, stream };
  const answer = await client.chat.completions.create({ ...asked, chat_template_kwargs: { enable_thinking: true } });
  const texts = { thought: "", content: "" };
  for await (const { choices } of stream ? answer : [answer]) {
    const said = choices[0]?.delta ?? choices[0]?.message ?? {};
    texts.thought += said.reasoning_content ?? said.reasoning ?? "";
    texts.content += said.content ?? "";
  }
  sameText(texts.thought, ASKED.THOUGHT);
  sameText(texts.content, ASKED.SUM_ANSWER);
});

await wholeAndStreamed("usage", async (stream) => {
  const { usage } = await ask(stream, [user(ASKED.QUESTION)]);
  return counted(usage.prompt_tokens, usage.completion_tokens);
});

await wholeAndStreamed("responses", async (stream) => {
  const input = [user(ASKED.WEATHER)];
  const options = { tools: [{ type: "function", ...declared }] };
  const first = await respond(stream, input, { ...options, tool_choice: "required" });
  const [call] = first.output;
  same("call", [call.name, JSON.parse(call.arguments)], ["get_weather", ASKED.ARGUMENTS]);
  input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: ASKED.RESULT });
  sameText((await respond(stream, input, options)).output_text, ASKED.REPORT);
  const sum = await respond(stream, ASKED.SUM, { reasoning: { effort: "low" } });
  sameText(sum.output[0].content[0].text, ASKED.THOUGHT);
  sameText(sum.output_text, ASKED.SUM_ANSWER);
  return counted(sum.usage.input_tokens, sum.usage.output_tokens);
});
