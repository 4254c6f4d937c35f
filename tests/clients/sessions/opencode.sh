# opencode: a provider of its own in the project's opencode.json.
cat > opencode.json <<END
{
  "autoupdate": false,
  "share": "disabled",
  "model": "local/$MODEL",
  "small_model": "local/$MODEL",
  "provider": {
    "local": {
      "npm": "@ai-sdk/openai-compatible",
      "options": {"baseURL": "$BASE_URL/v1", "apiKey": "none"},
      "models": {"$MODEL": {"name": "local", "tool_call": true, "reasoning": true, "limit": {"context": 65536, "output": 4096}}}
    }
  }
}
END
export OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_MODELS_FETCH=1 OPENCODE_DISABLE_LSP_DOWNLOAD=1
exec opencode run "$TASK"
