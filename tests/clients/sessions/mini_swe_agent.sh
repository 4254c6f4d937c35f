# mini-swe-agent: its own default agent, model and environment by options.
export MSWEA_CONFIGURED=true MSWEA_COST_TRACKING=ignore_errors MSWEA_SILENT_STARTUP=1 LITELLM_LOCAL_MODEL_COST_MAP=True
exec mini --model "openai/$MODEL" --config mini.yaml --config "model.model_kwargs.api_base=$BASE_URL/v1" \
    --yolo --exit-immediately --cost-limit 0 --task "$TASK"
