# frozen_string_literal: true

require 'open3'
require 'fileutils'
require 'tmpdir'
require_relative 'bosh_template'

# The release as it lies in the repository, and the programs that the tests call.
module Release
  ROOT = File.expand_path('../..', __dir__)
  FIXTURES = File.expand_path('../fixtures', __dir__)
  # Directory of the built programs; `bosh/tests/run` sets it.
  PROGRAMS = ENV.fetch('PORTCULLIS_PROGRAMS', File.expand_path('../target/debug', ROOT))

  module_function

  def job_names = Dir.children("#{ROOT}/jobs").sort
  def job(name) = BoshTemplate::Job.new("#{ROOT}/jobs/#{name}")
  def package_names = Dir.children("#{ROOT}/packages").sort

  # A fixture: `properties`, `links` and `instance` of one deployment of the job.
  def fixture(job, name)
    YAML.safe_load_file("#{FIXTURES}/#{job}/#{name}.yml", aliases: true) || {}
  end

  def fixtures(job)
    Dir.children("#{FIXTURES}/#{job}").map { |file| File.basename(file, '.yml') }.sort - ['bad']
  end

  # Renders a job with a fixture; `change` is merged into its properties.
  def render(job_name, fixture_name, change = {}, job: job(job_name))
    given = fixture(job_name, fixture_name)
    properties = merge(given.fetch('properties', {}), change)
    job.render(properties: properties, links: given.fetch('links', {}),
               instance: given.fetch('instance', {}))
  end

  # `change` wins; a null removes the value.
  def merge(base, change)
    base.merge(change) do |_, old, new|
      old.is_a?(Hash) && new.is_a?(Hash) ? merge(old, new) : new
    end
  end

  # Runs a command; standard output and standard error together, and whether it succeeded.
  def run(*command, input: '')
    output, status = Open3.capture2e(*command, stdin_data: input)
    [output, status.success?]
  rescue Errno::ENOENT
    raise "#{command.first} is missing: scripts/need #{File.basename(command.first)} installs it"
  end
end
