// The ai package through Anthropic's provider.

import { createAnthropic } from "@ai-sdk/anthropic";
import { run } from "./ai_sessions.mjs";
import { MODEL, V1 } from "./checks.mjs";

const thinking = { type: "enabled", budgetTokens: 1024 };
await run(createAnthropic({ baseURL: V1 })(MODEL), { providerOptions: { anthropic: { thinking } } });
