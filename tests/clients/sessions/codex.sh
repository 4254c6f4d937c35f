# Codex: a provider of its own in its config.toml.
mkdir -p "$HOME/.codex"
cat > "$HOME/.codex/config.toml" <<END
model = "$MODEL"
model_provider = "local"

[model_providers.local]
name = "local"
base_url = "$BASE_URL/v1"
wire_api = "responses"

[analytics]
enabled = false
END
# Nothing is asked, and no sandbox is set up: what it may do is up to who runs this.
exec codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox "$TASK"
