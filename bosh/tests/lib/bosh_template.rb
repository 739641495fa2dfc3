# frozen_string_literal: true

require 'erb'
require 'json'
require 'ostruct'
require 'yaml'

# Renders the templates of a job as the director does (gem bosh-template): ERB with trim
# mode `-`, properties of the job's spec with their defaults, links by name. Stricter than
# the director in one way: a template that asks for a property that is not in the spec
# fails, and every lookup is recorded.
module BoshTemplate
  class UnknownProperty < StandardError
    def initialize(names) = super("Can't find property '#{names.join("', or '")}'")
  end

  class UnknownLink < StandardError
    def initialize(name) = super("Can't find link '#{name}'")
  end

  class UndeclaredProperty < StandardError
    def initialize(name) = super("property '#{name}' is used by a template and missing in the spec")
  end

  class UndeclaredLink < StandardError
    def initialize(name) = super("link '#{name}' is used by a template and missing in the spec")
  end

  # The result of if_p and if_link: `.else`, `.else_if_p`, `.else_if_link`.
  class Else
    def initialize(context, active)
      @context = context
      @active = active
    end

    def else
      yield if @active
    end

    def else_if_p(*names, &block) = @active ? @context.if_p(*names, &block) : self
    def else_if_link(name, &block) = @active ? @context.if_link(name, &block) : self
  end

  # `p` and `if_p`, for a job and for a link.
  module Lookup
    def p(*arguments)
      names = Array(arguments.first)
      found = names.lazy.map { |name| lookup(name) }.find { |value| !value.nil? }
      return found unless found.nil?
      return arguments[1] if arguments.length == 2

      raise UnknownProperty, names
    end

    def if_p(*names)
      values = names.map { |name| lookup(name) }
      return Else.new(self, true) if values.any?(&:nil?)

      yield(*values)
      Else.new(self, false)
    end

    def dig(properties, name)
      name.split('.').reduce(properties) { |hash, key| hash.is_a?(Hash) ? hash[key] : nil }
    end
  end

  class LinkInstance
    include Lookup
    attr_reader :name, :index, :id, :az, :address, :properties, :bootstrap

    def initialize(fields)
      @name, @index, @id, @az, @address, @bootstrap =
        fields.values_at('name', 'index', 'id', 'az', 'address', 'bootstrap')
      @properties = fields['properties']
    end

    def lookup(name) = dig(@properties, name)
  end

  class Link
    include Lookup
    attr_reader :instances, :properties

    def initialize(fields)
      @fields = fields
      @instances = fields.fetch('instances').map { |instance| LinkInstance.new(instance) }
      @properties = fields['properties']
    end

    def address(_filters = {}) = @fields.fetch('address')
    def lookup(name) = dig(@properties, name)
  end

  # What a template sees.
  class Context
    include Lookup
    attr_reader :name, :index, :properties, :raw_properties, :spec

    def initialize(job, instance, properties, links)
      @job = job
      @name = job.name
      @index = instance['index']
      @spec = open_struct(instance)
      @raw_properties = properties
      @properties = open_struct(properties)
      @links = links
    end

    def link(name)
      fields = link_fields(name) or raise UnknownLink, name
      Link.new(fields)
    end

    def if_link(name)
      fields = link_fields(name) or return Else.new(self, true)
      yield Link.new(fields)
      Else.new(self, false)
    end

    def lookup(name)
      @job.record(name)
      dig(@raw_properties, name)
    end

    def get_binding = binding

    private

    def link_fields(name)
      @job.consumed?(name) or raise UndeclaredLink, name
      @links[name]
    end

    def open_struct(value)
      case value
      when Hash then OpenStruct.new(value.transform_values { |item| open_struct(item) })
      when Array then value.map { |item| open_struct(item) }
      else value
      end
    end
  end

  # A job of the release.
  class Job
    INSTANCE = {
      'address' => 'q-s0.api.default.cf.bosh', 'az' => 'z1', 'bootstrap' => true, 'deployment' => 'cf',
      'id' => '9b1b0c3e-6a54-4d2e-9a57-0a4b8a1f2c11', 'index' => 0, 'ip' => '10.0.16.5', 'name' => 'api',
      'networks' => { 'default' => { 'ip' => '10.0.16.5' } }
    }.freeze

    attr_reader :directory, :spec, :lookups

    def initialize(directory)
      @directory = directory
      @spec = YAML.safe_load_file("#{directory}/spec")
      @lookups = []
    end

    def name = @spec.fetch('name')
    def declared = @spec.fetch('properties', {})
    def consumed?(link) = @spec.fetch('consumes', []).any? { |entry| entry['name'] == link }

    def record(property)
      known = declared.keys.any? { |name| name == property || name.start_with?("#{property}.") }
      raise UndeclaredProperty, property unless known

      @lookups |= [property]
    end

    # All files of the job: path below /var/vcap/jobs/JOB to text; `monit` is one of them.
    def render(properties: {}, links: {}, instance: {})
      context = Context.new(self, INSTANCE.merge(instance), with_defaults(properties), links)
      files = { 'monit' => "#{@directory}/monit" }
      @spec.fetch('templates').each { |source, target| files[target] = "#{@directory}/templates/#{source}" }
      files.transform_values do |path|
        erb = ERB.new(File.read(path), trim_mode: '-')
        erb.filename = path
        erb.result(context.get_binding)
      end
    end

    private

    def with_defaults(given)
      declared.each_with_object({}) do |(name, definition), result|
        keys = name.split('.')
        value = keys.reduce(given) { |hash, key| hash.is_a?(Hash) ? hash[key] : nil }
        value = definition['default'] if value.nil?
        inner = keys[0..-2].reduce(result) { |hash, key| hash[key] ||= {} }
        inner[keys.last] = value
      end
    end
  end
end
