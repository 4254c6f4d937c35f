// The ai package through its provider for servers that speak chat completions.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { run } from "./ai_sessions.mjs";
import { MODEL, V1 } from "./checks.mjs";

const local = createOpenAICompatible({ name: "local", baseURL: V1, apiKey: "none", includeUsage: true });
await run(local(MODEL), { providerOptions: { local: { chat_template_kwargs: { enable_thinking: true } } } });
