// The ai package through OpenAI's provider: Responses, and its older way of chat completions.

import { createOpenAI } from "@ai-sdk/openai";
import { callsATool, run } from "./ai_sessions.mjs";
import { MODEL, V1, wholeAndStreamed } from "./checks.mjs";

const openai = createOpenAI({ baseURL: V1 });
// It asks only models that it knows to think, unless told that this one does.
const thinks = { forceReasoning: true, reasoningEffort: "low", reasoningSummary: "auto" };
await run(openai.responses(MODEL), { providerOptions: { openai: thinks } });
await wholeAndStreamed("completions", (stream) => callsATool(stream, openai.chat(MODEL)));
