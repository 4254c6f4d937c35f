# Continue's cn: a model in its config.yaml.
mkdir -p "$HOME/.continue"
cat > "$HOME/.continue/config.yaml" <<END
name: local
version: 0.0.1
schema: v1
models:
  - name: local
    provider: openai
    model: $MODEL
    apiBase: $BASE_URL/v1
    apiKey: none
    capabilities: [tool_use]
    roles: [chat]
END
export CONTINUE_TELEMETRY_ENABLED=0
exec cn --config "$HOME/.continue/config.yaml" --auto --print "$TASK"
