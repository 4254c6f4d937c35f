# Qwen Code, configured by the environment.
export OPENAI_BASE_URL="$BASE_URL/v1" OPENAI_MODEL="$MODEL" QWEN_SANDBOX=false
exec qwen --auth-type openai --approval-mode yolo --prompt "$TASK"
