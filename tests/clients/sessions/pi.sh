# pi: a provider of its own in its models.json.
mkdir -p "$HOME/.pi/agent"
cat > "$HOME/.pi/agent/models.json" <<END
{
  "providers": {
    "local": {
      "baseUrl": "$BASE_URL/v1",
      "api": "openai-completions",
      "apiKey": "none",
      "models": [{"id": "$MODEL", "reasoning": true, "contextWindow": 65536, "maxTokens": 4096}]
    }
  }
}
END
export PI_OFFLINE=1 PI_TELEMETRY=0
exec pi --provider local --model "$MODEL" --no-session --print "$TASK"
